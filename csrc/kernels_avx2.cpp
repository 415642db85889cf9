// AVX2 with FMA and half floats.
#include "avx2_isa.hpp"
#include "make_table.hpp"

namespace ernie_local {

const KernelTable& avx2_kernels() {
    static const KernelTable table = make_table<Avx2>("avx2");
    return table;
}

}  // namespace ernie_local
