#include "tensor_view.hpp"

#include <algorithm>

namespace nb = nanobind;

namespace ernie_local {
namespace {

// The part of dlpack.h (dmlc/dlpack, version 1.3) that is used here.
struct DLDevice {
    int32_t type, id;
};
struct DLDataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};
struct DLPackExchangeAPI {
    uint32_t major, minor;
    void* previous;
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object;
    void* managed_tensor_to_py_object;
    int (*dltensor_from_py_object)(void* py_object, DLTensor* out);
    void* current_work_stream;
};
constexpr int32_t kCpu = 1;
enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

NumberType type_of(int code, int bits, int lanes) {
    if (lanes != 1) return NumberType::kOther;
    if (code == kFloat && bits == 32) return NumberType::kFloat32;
    if (code == kBfloat && bits == 16) return NumberType::kBFloat16;
    if (code == kFloat && bits == 16) return NumberType::kFloat16;
    if (code == kInt && bits == 8) return NumberType::kInt8;
    if (code == kUInt && bits == 8) return NumberType::kUInt8;
    if (code == kInt && bits == 64) return NumberType::kInt64;
    return NumberType::kOther;
}

const DLPackExchangeAPI* look_up(PyTypeObject* type) {
    const nb::object capsule = nb::getattr(nb::handle(reinterpret_cast<PyObject*>(type)), "__dlpack_c_exchange_api__",
                                           nb::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    return api->major == 1 && api->dltensor_from_py_object != nullptr ? api : nullptr;
}

// The table of a tensor's type, or null. Called with the GIL held. Remembers the first few types (Tensor, Parameter),
// and holds on to them, so that no other type can come to lie where one was.
const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
    constexpr int kMost = 4;
    static PyTypeObject* types[kMost] = {};
    static const DLPackExchangeAPI* tables[kMost] = {};
    for (int i = 0; i < kMost; ++i) {
        if (types[i] == type) return tables[i];
        if (types[i] == nullptr) {
            tables[i] = look_up(type);
            Py_INCREF(reinterpret_cast<PyObject*>(type));
            types[i] = type;
            return tables[i];
        }
    }
    return look_up(type);
}

}  // namespace

TensorView::TensorView(nb::handle tensor) {
    if (const auto* api = exchange_api(Py_TYPE(tensor.ptr()))) {
        DLTensor found;
        if (api->dltensor_from_py_object(tensor.ptr(), &found) != 0) {
            PyErr_Clear();  // no plain numbers in memory (meta, sparse): the view says so by being unusable
            return;
        }
        type_ = type_of(found.dtype.code, found.dtype.bits, found.dtype.lanes);
        take(found.data == nullptr ? nullptr : static_cast<char*>(found.data) + found.byte_offset, found.device.type == kCpu, found.ndim, found.shape,
             found.strides);
        return;
    }
    // A tensor that wants a gradient refuses __dlpack__.
    const nb::object plain = nb::hasattr(tensor, "detach") ? tensor.attr("detach")() : nb::borrow(tensor);
    if (!nb::try_cast(plain, owner_)) return;
    type_ = type_of(owner_.dtype().code, owner_.dtype().bits, owner_.dtype().lanes);
    take(owner_.data(), owner_.device_type() == kCpu, static_cast<int>(owner_.ndim()), owner_.shape_ptr(),
         owner_.stride_ptr());
}

void TensorView::take(void* data, bool on_cpu, int num_dimensions, const int64_t* shape, const int64_t* strides) {
    data_ = data;
    num_dimensions_ = num_dimensions;
    if (!on_cpu || num_dimensions > kMostDimensions) return;
    std::copy_n(shape, num_dimensions, shape_);
    has_usable_rows_ = data != nullptr || std::find(shape, shape + num_dimensions, 0) != shape + num_dimensions;
    int64_t expected = 1;
    for (int i = num_dimensions - 1; i > 0; --i) {
        if (strides != nullptr && shape[i] != 1 && strides[i] != expected) has_usable_rows_ = false;
        expected *= shape[i];
    }
    const bool has_strides = num_dimensions > 0 && strides != nullptr && shape[0] != 1;
    row_stride_ = has_strides ? strides[0] : expected;
    usable_ = has_usable_rows_ && row_stride_ == expected;
    if (row_stride_ < expected) has_usable_rows_ = false;
}

bool TensorView::is_rows(NumberType type, std::initializer_list<int64_t> shape) const {
    return has_usable_rows_ && type_ == type && num_dimensions_ == static_cast<int>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), shape_);
}

bool TensorView::is(NumberType type, std::initializer_list<int64_t> shape) const {
    return usable_ && type_ == type && num_dimensions_ == static_cast<int>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), shape_);
}

}  // namespace ernie_local
