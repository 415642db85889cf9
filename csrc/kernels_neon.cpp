// 64-bit ARM with the dot product extension.
#include "make_table.hpp"
#include "neon_isa.hpp"

namespace ernie_local {

const KernelTable& neon_kernels() {
    static const KernelTable table = make_table<Neon>("neon");
    return table;
}

}  // namespace ernie_local
