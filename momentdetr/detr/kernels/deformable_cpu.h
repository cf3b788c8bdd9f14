/* The arithmetic of deformable_cpu.c for one instruction set (TARGET, BYTES of a vector) and one type of value
 * (float; HALF: bfloat16 with float arithmetic; DOUBLE), in names that end in SUFFIX. No include guards: included
 * many times. */

#include "deformable_cpu_points.h"

#include "deformable_cpu_forward.h"

#include "deformable_cpu_backward.h"

static const Functions NAME(functions) = {NAME(refer), NAME(copy), NAME(look), NAME(weigh), NAME(scatter), NAME(finish)};

#undef Real
#undef Int
#undef Value
#undef Vector
#undef Ints
#undef Lanes
#undef Axis
#undef WIDTH
#undef BLOCK
#undef BATCH
#undef ROOM
#undef WHOLE
#undef FAR
#undef NEAR
#undef EXPONENT
#undef BIAS
