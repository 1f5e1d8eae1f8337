#include "selection.h"

#include "memory.h"

/* Capacity for candidates, which are reduced to the best k when it is exhausted. */
static size_t capacity_for(size_t n, size_t k) { return (n - k > k + 512 ? 2 * k + 512 : n) + CSM_SELECT_SLACK * 2; }

static size_t level_size(size_t n, size_t k) {
    return csm_is_dense_selection(n, k) ? n + CSM_SELECT_SLACK : n / 4 + 4 * CSM_SELECT_SLACK;
}

size_t csm_select_size(size_t n, size_t k, size_t wide_size) {
    const size_t candidates = 2 * capacity_for(n, k) * (wide_size + sizeof(int64_t));
    const size_t counts = n > CSM_SELECT_RANKED ? sizeof(csm_digit_counts) : 0;
    return csm_rounded(candidates + level_size(n, k) * wide_size) + counts + CSM_ALIGN;
}

csm_select csm_select_at(char *memory, size_t n, size_t k, size_t wide_size, csm_poll poll) {
    csm_select s = {.capacity = capacity_for(n, k), .poll = poll};
    s.index = (int64_t *)(void *)memory;
    s.spare_index = s.index + s.capacity;
    s.key = s.spare_index + s.capacity;
    s.spare_key = (char *)s.key + s.capacity * wide_size;
    s.level = (char *)s.spare_key + s.capacity * wide_size;
    const size_t before = (size_t)((char *)s.level - memory) + level_size(n, k) * wide_size;
    s.counts = (csm_digit_counts *)(void *)(memory + csm_rounded(before));
    return s;
}
