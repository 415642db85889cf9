#include "expert_page.hpp"

#include <cstring>

namespace ernie_local {
namespace {

constexpr size_t kHeaderBytes = 64;
constexpr uint16_t kVersion = 2;

struct Header {
    char magic[4];
    uint16_t version;
    uint8_t gate_up, down;
    uint32_t hidden_size, inner_size;
};

}  // namespace

bool read_page(const uint8_t* page, size_t available_bytes, int hidden_size, ExpertPage& out) {
    if (available_bytes < kHeaderBytes) return false;
    Header header;
    std::memcpy(&header, page, sizeof header);
    if (std::memcmp(header.magic, "ERNX", 4) != 0 || header.version != kVersion) return false;
    out.gate_up = format_info(header.gate_up);
    out.down = format_info(header.down);
    if (out.gate_up == nullptr || out.down == nullptr) return false;
    if (header.hidden_size != static_cast<uint32_t>(hidden_size)) return false;
    constexpr uint32_t kLargestInner = 1u << 24;
    if (header.inner_size == 0 || header.inner_size > kLargestInner || header.inner_size % kColumnStep) return false;
    out.hidden_size = hidden_size;
    out.inner_size = static_cast<int>(header.inner_size);
    const size_t gate_up_bytes = 2 * out.gate_up->matrix_bytes(out.inner_size, hidden_size);
    const size_t down_bytes = out.down->matrix_bytes(hidden_size, out.inner_size);
    if (kHeaderBytes + gate_up_bytes + down_bytes > available_bytes) return false;
    out.gate_up_tiles = page + kHeaderBytes;
    out.down_tiles = out.gate_up_tiles + gate_up_bytes;
    return true;
}

}  // namespace ernie_local
