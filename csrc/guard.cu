/* guard.cu: the kernels. One block of TG_LANES lanes walks one sequence; the code is the host's. */
#include "machine.c"
#include "decide.c"
#include "edit.c"
#include "guard.c"

extern "C" __global__ void __launch_bounds__(TG_LANES) guard_slots(const __grid_constant__ tg_slots_step step) {
  tg_guard_slot(&step, (int32_t)blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(TG_LANES) guard_sequences(const __grid_constant__ tg_sequences_step step) {
  tg_guard_sequence(&step, (int32_t)blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(TG_LANES) guard_edits(const __grid_constant__ tg_edits_step step) {
  tg_guard_edit(&step, (int32_t)blockIdx.x);
}
