/* The shape of binary trees: Huffman's tree, parents and depths, sums over subtrees.
 *
 * Every loop is over an array: a chain of a million nodes needs no stack.
 */
#include "../core/extension.h"

/* Two queues (van Leeuwen 1976): the leaves, which are sorted, and the nodes, whose weights ascend as they are made.
 * The lighter of two heads is taken; of equal ones the leaf, and of leaves the first.  Nodes are made in ascending
 * order of weight and numbered backwards, so that the heavy ones, which most paths visit, share cache lines. */
void csm_tree_huffman(size_t n, const double *weights, const int64_t *classes, int32_t *child, double *sums) {
    size_t leaf = 0, node = 0; /* heads of the queues */
    for (size_t made = 0; made + 1 < n; made++) {
        const size_t at = n - 2 - made;
        double sum = 0;
        for (int side = 0; side < 2; side++) {
            if (leaf < n && (node == made || weights[leaf] <= sums[node])) {
                child[2 * at + side] = ~(int32_t)classes[leaf];
                sum += weights[leaf++];
            } else {
                child[2 * at + side] = (int32_t)(n - 2 - node);
                sum += sums[node++];
            }
        }
        sums[made] = sum;
    }
}

size_t csm_tree_trace(csm_tree *tree, int32_t *node_depth) {
    size_t count = 0;
    if (tree->classes < 2) {
        if (tree->classes) tree->depth[0] = 0;
        return 0;
    }
    tree->order[count++] = (int32_t)tree->root;
    node_depth[tree->root] = 0;
    tree->node_parent[tree->root] = 0;
    for (size_t i = 0; i < count; i++) {
        const int32_t node = tree->order[i];
        for (uint32_t side = 0; side < 2; side++) {
            const int32_t below = tree->child[2 * (size_t)node + side];
            const uint32_t parent = (uint32_t)node | side << 31;
            if (below < 0) {
                tree->leaf_parent[~below] = parent;
                tree->depth[~below] = node_depth[node] + 1;
            } else {
                tree->node_parent[below] = parent;
                node_depth[below] = node_depth[node] + 1;
                tree->order[count++] = below;
            }
        }
    }
    return count;
}

void csm_tree_sums(const csm_tree *tree, const double *weights, double *sums) {
    for (size_t i = tree->classes > 0 ? tree->classes - 1 : 0; i-- > 0;) {
        const size_t node = (size_t)tree->order[i];
        for (size_t side = 0; side < 2; side++) {
            const int32_t below = tree->child[2 * node + side];
            sums[2 * node + side] = below < 0 ? weights[~below] : sums[2 * (size_t)below] + sums[2 * (size_t)below + 1];
        }
    }
}
