// A torch tensor as the operators see it: where its numbers lie, their type, its shape.
//
// nanobind's own ndarray asks for a DLPack capsule, some 3 microseconds a tensor; torch's table of C functions
// (DLPack 1.3, there in torch 2.13) answers in some 0.1. Without it ndarray is asked.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>

namespace ernie_local {

enum class NumberType { kFloat32, kBFloat16, kFloat16, kInt8, kUInt8, kInt64, kOther };

class TensorView {
public:
    // Borrows: the tensor must outlive the view and keep its shape meanwhile.
    explicit TensorView(nanobind::handle tensor);

    // Whether it lies on the CPU, row by row without gaps, with this type and shape.
    bool is(NumberType type, std::initializer_list<int64_t> shape) const;
    // As `is`, but rows of the first dimension may lie further apart, row_stride() numbers from one to the next.
    bool is_rows(NumberType type, std::initializer_list<int64_t> shape) const;
    int64_t row_stride() const { return row_stride_; }
    // Whether it has as many dimensions, whatever lies in it.
    bool has_dimensions(int count) const { return num_dimensions_ == count; }

    int64_t size(int dimension) const { return shape_[dimension]; }
    NumberType type() const { return type_; }
    template <class Number>
    Number* data() const {
        return static_cast<Number*>(data_);
    }

private:
    static constexpr int kMostDimensions = 4;

    void take(void* data, bool on_cpu, int num_dimensions, const int64_t* shape, const int64_t* strides);

    void* data_ = nullptr;
    NumberType type_ = NumberType::kOther;
    int num_dimensions_ = -1;
    bool usable_ = false, has_usable_rows_ = false;
    int64_t row_stride_ = 0;
    int64_t shape_[kMostDimensions] = {};
    nanobind::ndarray<> owner_;  // where the table is missing
};

}  // namespace ernie_local
