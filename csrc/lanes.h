/* lanes.h: who shares the loops over many tokens.
 *
 * On a GPU one block of 128 lanes walks one sequence. All lanes hold the same state in registers and take the same branches;
 * they share out only the loops marked by TG_EACH, and what one of them alone finds out becomes known to all by tg_any,
 * tg_first, tg_count and tg_largest, which all of them have to reach. On the host there is one lane, and all of this is
 * nothing. Rules of sharing: before a lane reads what another one wrote, all meet (tg_meet); what all would write alike,
 * lane 0 writes (TG_ALONE); between two loops that may write the same place all meet. A TG_SHARED variable of a function is one
 * for all lanes.
 *
 * tests/lanes runs the same source with TG_EMULATED lanes on the host.
 */
#ifndef THINKGUARD_LANES_H
#define THINKGUARD_LANES_H

#include <stdint.h>

#if defined(__CUDA_ARCH__)

#define TG_MOST_LANES 128
#define TG_LANES TG_MOST_LANES
#define TG_LANE ((int32_t)threadIdx.x)
#define TG_SHARED __shared__

static inline void tg_meet(void) { __syncthreads(); }

/* Whether `here` holds for any lane. */
static inline int tg_any(int here) { return __syncthreads_or(here); }

/* For how many lanes `here` holds. */
static inline int32_t tg_count(int here) { return __syncthreads_count(here); }

/* The lowest lane for which `here` holds, TG_LANES: for none. */
static inline int32_t tg_first(int here) {
  __shared__ uint32_t votes[TG_LANES / 32];
  uint32_t vote = __ballot_sync(0xFFFFFFFFu, here);
  if (threadIdx.x % 32 == 0) votes[threadIdx.x / 32] = vote;
  __syncthreads();
  int32_t first = TG_LANES;
  for (int32_t warp = TG_LANES / 32 - 1; warp >= 0; warp--)
    if (votes[warp]) first = 32 * warp + __ffs((int)votes[warp]) - 1;
  __syncthreads(); /* all have read before the next vote */
  return first;
}

/* The largest value of all lanes. */
static inline float tg_largest(float here) {
  __shared__ float values[TG_LANES / 32];
  for (int apart = 16; apart; apart /= 2) here = fmaxf(here, __shfl_xor_sync(0xFFFFFFFFu, here, apart));
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = here;
  __syncthreads();
  for (int32_t warp = 0; warp < TG_LANES / 32; warp++) here = fmaxf(here, values[warp]);
  __syncthreads();
  return here;
}

#elif defined(TG_EMULATED)

#define TG_MOST_LANES 128
#define TG_LANES TG_EMULATED
#define TG_LANE tg_lane()
#define TG_SHARED static
int32_t tg_lane(void);
void tg_meet(void);
int tg_any(int here);
int32_t tg_count(int here);
int32_t tg_first(int here);
float tg_largest(float here);

#else

#define TG_MOST_LANES 1
#define TG_LANES 1
#define TG_LANE 0
#define TG_SHARED
static inline void tg_meet(void) {}
static inline int tg_any(int here) { return here; }
static inline int32_t tg_count(int here) { return here != 0; }
static inline int32_t tg_first(int here) { return !here; }
static inline float tg_largest(float here) { return here; }

#endif

/* A loop whose turns are shared out: i from `from` to below `to`. */
#define TG_EACH(i, from, to) for (int32_t i = (from) + TG_LANE; i < (to); i += TG_LANES)

/* What one lane does for all. */
#define TG_ALONE if (TG_LANE == 0)

#endif
