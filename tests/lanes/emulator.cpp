/* The kernels of csrc/guard.cu run on the host, as a stand-in for the CUDA driver.
 *
 * A block's lanes are fibers of one thread. They run one after the other in an order that changes at every meeting, so that
 * code which reads what another lane has not written yet, or not read yet, comes to other results than the host's. All lanes
 * have to come to the same meeting: one that misses it, or ends early, is an error of the launch instead of a hang.
 *
 * Built as a shared object named libcuda.so.1: the package's launcher loads it in place of the driver. `standin_*` tell it what
 * to be and what to refuse. C++20, as NVRTC compiles it.
 */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <ucontext.h>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __launch_bounds__(lanes)
#define __grid_constant__
#include "lanes.h"
static struct { unsigned x; } blockIdx;
#include "guard.cu"

/* --- fibers --- */

namespace {

constexpr int LANES = TG_EMULATED;
constexpr size_t STACK = 256 << 10;

enum Kind { MEET, ANY, COUNT, FIRST, LARGEST };
struct Lane {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(STACK);
  bool done;
  Kind kind;
  void* site;
  int vote;
  float value;
  void* fiber;   /* TSan's */
  void* fake;    /* ASan's */
};
Lane lanes[LANES];
ucontext_t scheduler;
[[maybe_unused]] void *scheduler_fiber, *scheduler_fake;
[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_size;
int running;
int32_t met_int;
float met_float;
char failure[256];
uint64_t random_state = 1;
void (*kernel)(const void*);
const void* argument;

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void fail(const char* format, ...) {
  va_list rest;
  va_start(rest, format);
  if (!failure[0]) vsnprintf(failure, sizeof failure, format, rest);
  va_end(rest);
}

void to_scheduler(bool last) {
  Lane& lane = lanes[running];
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(scheduler_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &lane.fake, scheduler_stack, scheduler_size);
#endif
  swapcontext(&lane.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(lane.fake, &scheduler_stack, &scheduler_size);
#endif
  (void)last;
}

void resume(int which) {
  running = which;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(lanes[which].fiber, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake, lanes[which].stack.data(), STACK);
#endif
  swapcontext(&scheduler, &lanes[which].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

void lane_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  kernel(argument);
  lanes[running].done = true;
  to_scheduler(true);
}

/* What a meeting says to all lanes; a barrier in TSan's eyes. */
void meet(Kind kind, void* site, int vote, float value) {
  Lane& lane = lanes[running];
  lane.kind = kind, lane.site = site, lane.vote = vote, lane.value = value;
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&met_int);
#endif
  to_scheduler(false);
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&met_int);
#endif
}

/* Run one block. */
void run_block() {
  int order[LANES];
  for (int i = 0; i < LANES; i++) {
    Lane& lane = lanes[i];
    order[i] = i;
    lane.done = false;
    lane.fake = nullptr;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.data();
    lane.context.uc_stack.ss_size = STACK;
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, lane_main, 0);
#if defined(__SANITIZE_THREAD__)
    scheduler_fiber = __tsan_get_current_fiber();
    lane.fiber = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&met_int);
#endif
  while (!failure[0]) {
    for (int i = LANES - 1; i > 0; i--) std::swap(order[i], order[next_random() % (i + 1)]);
    int num_done = 0;
    for (int i : order) resume(i);
    for (const Lane& lane : lanes) num_done += lane.done;
    if (num_done == LANES) break;
    if (num_done) fail("%d of %d lanes ended while others wait at a meeting", num_done, LANES);
    const Lane& one = lanes[0];
    met_int = one.kind == FIRST ? LANES : 0;
    met_float = one.value;
    for (int i = LANES - 1; i >= 0; i--) {
      const Lane& lane = lanes[i];
      if (lane.kind != one.kind || lane.site != one.site) fail("lane %d came to another meeting than lane 0", i);
      if (one.kind == ANY) met_int |= lane.vote != 0;
      if (one.kind == COUNT) met_int += lane.vote != 0;
      if (one.kind == FIRST && lane.vote) met_int = i;
      if (one.kind == LARGEST && lane.value > met_float) met_float = lane.value;
    }
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&met_int);
  for (Lane& lane : lanes) __tsan_destroy_fiber(lane.fiber);
#endif
}

}  // namespace

#define SITE __builtin_return_address(0)
int32_t tg_lane(void) { return running; }
__attribute__((noinline)) void tg_meet(void) { meet(MEET, SITE, 0, 0); }
__attribute__((noinline)) int tg_any(int here) { return meet(ANY, SITE, here, 0), met_int; }
__attribute__((noinline)) int32_t tg_count(int here) { return meet(COUNT, SITE, here, 0), met_int; }
__attribute__((noinline)) int32_t tg_first(int here) { return meet(FIRST, SITE, here, 0), met_int; }
__attribute__((noinline)) float tg_largest(float here) { return meet(LARGEST, SITE, 0, here), met_float; }

/* --- the driver --- */

namespace {

void run_slots(const void* step) { guard_slots(*(const tg_slots_step*)step); }
void run_sequences(const void* step) { guard_sequences(*(const tg_sequences_step*)step); }
void run_edits(const void* step) { guard_edits(*(const tg_edits_step*)step); }
struct Kernel {
  const char* name;
  void (*run)(const void*);
};
Kernel kernels[] = {{"guard_slots", run_slots}, {"guard_sequences", run_sequences}, {"guard_edits", run_edits}};

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_BINARY = 209, INVALID_CONTEXT = 201, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
int major_version = 9, minor_version = 0, num_launches;
char refused[64];
int refusal;
thread_local std::vector<void*> contexts;
int the_context;

int answer(const char* name) { return !strcmp(name, refused) ? refusal : SUCCESS; }
#define REFUSABLE \
  if (int status = answer(__func__)) return status

}  // namespace

extern "C" {

void standin_be(int major, int minor) { major_version = major, minor_version = minor; }
void standin_refuse(const char* name, int status) {
  snprintf(refused, sizeof refused, "%s", name);
  refusal = status;
}
void standin_seed(uint64_t seed) { random_state = seed | 1; }
int standin_lanes(void) { return LANES; }
int standin_launches(void) { return num_launches; }
const char* standin_failure(void) { return failure; }

int cuGetErrorName(int status, const char** name) {
  *name = status == LAUNCH_FAILED && failure[0] ? failure : status == NO_BINARY ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : nullptr;
  return SUCCESS;
}
int cuInit(unsigned) {
  REFUSABLE;
  return SUCCESS;
}
int cuDeviceGet(int* device, int ordinal) {
  REFUSABLE;
  *device = ordinal;
  return ordinal < 2 ? SUCCESS : INVALID_VALUE;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  REFUSABLE;
  *value = attribute == 75 ? major_version : attribute == 76 ? minor_version : 0;
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  REFUSABLE;
  *context = &the_context;
  return SUCCESS;
}
int cuLibraryLoadData(void** library, const void* image, void*, void*, unsigned, void*, void*, unsigned) {
  REFUSABLE;
  const char* bytes = (const char*)image;
  *library = kernels;
  return !memcmp(bytes, "\x7F" "ELF", 4) || strstr(bytes, ".version") ? SUCCESS : NO_BINARY;
}
int cuLibraryGetKernel(void** kernel_, void* library, const char* name) {
  REFUSABLE;
  if (library != kernels) return INVALID_VALUE;
  for (Kernel& one : kernels)
    if (!strcmp(one.name, name)) return *kernel_ = &one, SUCCESS;
  return NOT_FOUND;
}
int cuKernelGetFunction(void** function, void* kernel_) {
  REFUSABLE;
  *function = kernel_;
  return contexts.empty() ? INVALID_CONTEXT : SUCCESS;
}
int cuCtxPushCurrent_v2(void* context) {
  REFUSABLE;
  contexts.push_back(context);
  return context == &the_context ? SUCCESS : INVALID_CONTEXT;
}
int cuCtxPopCurrent_v2(void** context) {
  REFUSABLE;
  if (contexts.empty()) return INVALID_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}
int cuCtxGetCurrent(void** context) {
  REFUSABLE;
  *context = contexts.empty() ? nullptr : contexts.back();
  return SUCCESS;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void*, void** arguments, void** extra) {
  REFUSABLE;
  if (contexts.empty()) return INVALID_CONTEXT;
  if (!blocks || y != 1 || z != 1 || threads != 128 || ty != 1 || tz != 1 || shared || extra) return INVALID_VALUE;
  num_launches++;
  failure[0] = 0;
  kernel = ((Kernel*)function)->run;
  argument = arguments[0];
  for (unsigned i = 0; i < blocks && !failure[0]; i++) {
    blockIdx.x = i;
    run_block();
  }
  return failure[0] ? LAUNCH_FAILED : SUCCESS;
}

} /* extern "C" */
