/* All kernels of one storage type.  Undefines the macros that unit.inc.h defined for it. */
#include "softmax/short_rows.inc.h"
#include "softmax/forward.inc.h"
#include "softmax/tile.inc.h"
#include "softmax/vjp.inc.h"
#include "cross_entropy/loss.inc.h"
#include "topk/topk.inc.h"
#include "entmax/entmax.inc.h"
#include "row_optimizer/row_optimizer.inc.h"
#undef ONE_VECTOR
#undef USED
#undef T
#undef STORED_AS_REAL
#undef FN
#undef LOAD
#undef LOAD_PART
#undef STORE
#undef STORE_PART
