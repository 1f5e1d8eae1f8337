/* Drawing from rows of several blocks whose classes are divided among shards.
 *
 *   masses   the mass of each block of a shard, scaled to the row's maximum, after min-p and within what top-p keeps
 *   nucleus  how many of the largest logits of a row top-p keeps, given the mass of the whole row
 *   draws    the classes of a shard in which the draws land, given the masses of all blocks of the row
 *
 * These are the numbers that sample.c computes of a whole row, added in the same order, so that each draw is the same.
 *
 * Passes: one for the masses, one more with min-p; for the draws, the blocks in which they land.  Rows whose maximum is
 * not finite have no mass.
 */
#include "sample.h"
#include "shard.h"

static csm_status find_masses(csm_sample_row *row) {
    const csm_sample_shard *s = row->call->shard;
    const size_t blocks = csm_block_count(row->count);
    csm_status status = csm_sample_blocks(row, csm_sample_sum_body);
    if (status == CSM_OK && s->sums) {
        const csm_record record = csm_record_of_blocks(row->blocks, blocks, 0);
        csm_record_store(&record, s->sums + row->index * CSM_RECORD_WORDS);
    }
    if (status == CSM_OK) status = csm_sample_blocks(row, csm_sample_scale_body);
    if (status == CSM_OK && row->min_p > 0) status = csm_sample_blocks(row, csm_sample_min_p_body);
    for (size_t b = 0; b < blocks; b++) s->masses[row->index * blocks + b] = row->blocks[b].hi;
    return status;
}

static csm_status find_nucleus(csm_sample_row *row) {
    csm_sample_call *call = row->call;
    const csm_sample_shard *s = call->shard;
    const csm_record record = csm_record_load(s->sums + row->index * CSM_RECORD_WORDS);
    double all, rest;
    row->mass = csm_sample_buffer(call, row->thread, CSM_SAMPLE_MASS, row->count * call->base.wide_size);
    if (!row->mass) return CSM_NO_MEMORY;
    csm_exact_pair(&record.sum, (int64_t)row->n, &all, &rest);
    row->limit = row->top_p * all;
    csm_status status = csm_sample_selected_masses(row);
    if (status == CSM_OK) status = csm_sample_nucleus(row);
    const int is_done = row->sum >= row->limit || row->count == s->classes;
    s->kept[2 * row->index] = is_done ? (int64_t)row->kept : 0;
    s->kept[2 * row->index + 1] = !csm_sample_begins_with_passes(row, all);
    return status;
}

static csm_status draw(csm_sample_row *row) {
    const csm_sample_shard *s = row->call->shard;
    const size_t blocks = csm_block_count(s->classes), own = row->count;
    for (size_t b = 0; b < blocks; b++) row->blocks[b].hi = s->masses[row->index * blocks + b];
    row->count = s->classes;
    csm_sample_add_blocks(row);
    row->count = own;
    return csm_sample_draw_shard(row, s->offset / CSM_BLOCK);
}

csm_status csm_sample_shard_row(csm_sample_row *row) {
    const csm_sample_shard *s = row->call->shard;
    csm_status status = csm_sample_set_max(row, s->row_max[row->index]);
    if (status != CSM_OK) return status;
    if (s->last && s->last[row->index] == s->last[row->index])
        csm_sample_keep_to(row, s->last[row->index], s->last_class[row->index] - (int64_t)s->offset);
    switch (s->stage) {
    case CSM_SAMPLE_STAGE_MASSES: return find_masses(row);
    case CSM_SAMPLE_STAGE_NUCLEUS: return find_nucleus(row);
    default: return draw(row);
    }
}
