// The paged cache of keys and values: bf16 [pages, layers, kv_heads, 2 (keys, values), PAGE, D]. Kernels are given the address of
// their layer in page 0, and the elements from one page to the next.
//
// A row is one token at one position of one sequence; table: u32 [sequences, table_len], the pages of each sequence in order.
#pragma once
#include "common/target.cuh"

namespace paged {
// Tokens in a page.
constexpr int PAGE = 32;

// Where the keys of a page and kv head start; the values follow PAGE · d elements later.
__device__ inline size_t keys_at(unsigned page, int page_stride, int kv_head, int d) {
    return static_cast<size_t>(page) * page_stride + static_cast<size_t>(kv_head) * 2 * PAGE * d;
}
}  // namespace paged
