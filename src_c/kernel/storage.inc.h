/* All kernels of one storage type; undefines what all.inc.h defined for it. */
#include "group.inc.h"
#include "forward.inc.h"
#include "tile.inc.h"
#include "vjp.inc.h"
#include "cross_entropy.inc.h"
#include "topk.inc.h"
#include "entmax.inc.h"
#undef ONE_VECTOR
#undef USED
#undef T
#undef STORED_AS_REAL
#undef FN
#undef LOAD
#undef LOAD_PART
#undef STORE
#undef STORE_PART
