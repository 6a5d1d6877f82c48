/* guard.cu: the kernels. One block of TG_LANES lanes walks one sequence; the code is the host's.
 *
 * Steps are kernel arguments by value. Four blocks share a multiprocessor at least: without that word the assembler spares
 * registers that nothing else needs, and puts some into memory.
 */
#include "machine.c"
#include "decide.c"
#include "edit.c"
#include "guard.c"

#define TG_KERNEL extern "C" __global__ void __launch_bounds__(TG_LANES, 4)

TG_KERNEL guard_slots(const __grid_constant__ tg_slots_step step) { tg_guard_slot(&step, (int32_t)blockIdx.x); }
TG_KERNEL guard_sequences(const __grid_constant__ tg_sequences_step step) { tg_guard_sequence(&step, (int32_t)blockIdx.x); }
TG_KERNEL guard_edits(const __grid_constant__ tg_edits_step step) { tg_guard_edit(&step, (int32_t)blockIdx.x); }
