#include "scratch.h"

#include "memory.h"

#include <string.h>

void csm_scratch_begin_in(csm_scratch *s, int threads, int each, csm_buffer *table) {
    s->buffers = s->single = table;
    s->threads = threads;
    s->each = each;
    memset(table, 0, (size_t)threads * (size_t)each * sizeof *table);
}

csm_status csm_scratch_begin(csm_scratch *s, int threads, int each, csm_buffer *single) {
    csm_buffer *table = single;
    if (threads > 1 && !(table = csm_allocate((size_t)threads * (size_t)each * sizeof *table))) return CSM_NO_MEMORY;
    csm_scratch_begin_in(s, threads, each, table);
    s->single = single;
    return CSM_OK;
}

void csm_scratch_end(csm_scratch *s) {
    for (int i = 0; i < s->threads * s->each; i++)
        if (!s->buffers[i].is_borrowed) csm_release(s->buffers[i].data);
    if (s->buffers != s->single) csm_release(s->buffers);
}

char *csm_scratch_get(csm_scratch *s, int thread, int which, size_t size) {
    csm_buffer *b = &s->buffers[thread * s->each + which];
    if (b->data && size <= b->size) return b->data;
    if (!b->is_borrowed) csm_release(b->data);
    *b = (csm_buffer){csm_allocate(csm_rounded(size)), size, 0};
    return b->data;
}

void csm_scratch_lend(csm_scratch *s, int thread, int which, void *memory, size_t size) {
    s->buffers[thread * s->each + which] = (csm_buffer){memory, size, 1};
}
