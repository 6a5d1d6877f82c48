/* The kernels of csrc/guard.cu run on the host, as a stand-in for the CUDA driver.
 *
 * A block's lanes are fibers of one thread. They run one after the other in an order that changes at every meeting, so that
 * code which reads what another lane has not written yet, or wrote too early, comes to other results than the host's. All
 * lanes have to come to the same meeting: one that misses it, or ends early, is an error of the launch instead of a hang.
 * Blocks run one after the other, in any order.
 * Under TSan lanes are threads, and only meetings order them: what two lanes write alike is reported as well.
 *
 * Built as a shared object named libcuda.so.1: the package's launcher loads it in place of the driver. `standin_*` tell it
 * what to be, what to refuse and what to get wrong. C++20, as NVRTC compiles csrc.
 */
#include <cstdarg>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "fiber.h"

#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
static int standin_num_lanes = 16; /* of the next block: any number that a test wants to see */
#define TG_EMULATED standin_num_lanes
#include "lanes.h"

/* Shared memory, which holds anything when a block begins. */
#undef TG_SHARED
#define TG_SHARED static __attribute__((section("shared_memory")))
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_shared_memory[], __stop_shared_memory[];

/* --- meetings --- */

namespace {

enum Kind { MEET, ANY, COUNT, FIRST, LARGEST, ALONE };
const char* const KINDS[] = {"tg_meet", "tg_any", "tg_count", "tg_first", "tg_largest", "TG_ALONE"};

/* A place in csrc where lanes meet, or where lane 0 works for all. */
struct Site {
  Kind kind;
  const char* path;
  int line;
  long long reached; /* how often */
  int missing;       /* the lane that takes no notice of it, EVERY: all of them; for tests of the emulation itself */
  const char* meeting() const { return KINDS[kind]; }
  const char* file() const { return strrchr(path, '/') ? strrchr(path, '/') + 1 : path; }
};
enum { NOBODY = -1, EVERY = -2, MOST_LANES = 128, MOST_SITES = 128 };
Site* sites[MOST_SITES];
int num_sites;

struct Lane {
  Fiber fiber;
  bool done = false;
  Site* site = nullptr;
  int vote = 0;
  float value = 0;
  int32_t answer = 0; /* of the meeting it came from */
  float largest = 0;
  explicit Lane(void (*run)()) : fiber(run) {}
};
Lane* lanes[MOST_LANES];
int running;
char failure[256];
uint64_t random_state = 1;
void (*kernel)(const void*);
const void* argument;
#if defined(__SANITIZE_THREAD__)
char arrived, departed; /* what a lane did before a meeting is known to all behind it */
#define RELEASE(what) __tsan_release(&what)
#define ACQUIRE(what) __tsan_acquire(&what)
int open_reports() {
  int file = memfd_create("reports", 0);
  __sanitizer_set_report_fd((void*)(uintptr_t)file);
  return file;
}
const int reports = open_reports(); /* a file in memory to which TSan writes what it finds */
off_t reported;                     /* bytes of it that were seen */
#else
#define RELEASE(what) ((void)0)
#define ACQUIRE(what) ((void)0)
#endif

UNWATCHED uint32_t random_below(uint32_t end) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)((random_state >> 32) * end >> 32);
}

UNWATCHED void fail(const char* format, ...) {
  va_list rest;
  va_start(rest, format);
  if (!failure[0]) vsnprintf(failure, sizeof failure, format, rest);
  va_end(rest);
}

/* Note that the running lane came to a place. Returns whether it is to take no notice. */
UNWATCHED bool passes_by(Site& site) {
  if (!site.reached && num_sites < MOST_SITES) sites[num_sites++] = &site;
  site.reached++;
  return site.missing == EVERY || site.missing == running;
}

UNWATCHED bool works_for_all(Site& site) { return passes_by(site) || running == 0; }

/* Come to a meeting, and go on when all have. */
UNWATCHED const Lane& meet(Site& site, int vote, float value) {
  Lane& lane = *lanes[running];
  if (passes_by(site)) return lane;
  lane.site = &site, lane.vote = vote, lane.value = value;
  RELEASE(arrived);
  lane.fiber.wait();
  ACQUIRE(departed);
  return lane;
}

/* What TSan found in a launch becomes the launch's failure. */
void take_reports() {
#if defined(__SANITIZE_THREAD__)
  off_t size = lseek(reports, 0, SEEK_END);
  if (size == reported) return;
  std::vector<char> text((size_t)(size - reported) + 1);
  if (pread(reports, text.data(), text.size() - 1, reported) < 0) perror("TSan's reports");
  reported = size;
  if (const char* summary = strstr(text.data(), "SUMMARY: ")) fail("%.*s", (int)strcspn(summary, "\n"), summary);
  if (getenv("THINKGUARD_SANITIZE_VERBOSE")) fputs(text.data(), stderr);
#endif
}

UNWATCHED int32_t lane_now() { return running; }

UNWATCHED void run_lane() {
  Lane& lane = *lanes[running];
  lane.fiber.resumed();
  for (;;) {
    ACQUIRE(departed);
    kernel(argument);
    lane.done = true;
    RELEASE(arrived);
    lane.fiber.wait();
  }
}

/* What a meeting says to all. */
UNWATCHED void settle_meeting(int num_lanes) {
  const Lane& one = *lanes[0];
  int32_t any = 0, count = 0, first = num_lanes;
  float largest = one.value;
  for (int i = num_lanes - 1; i >= 0; i--) {
    const Lane& lane = *lanes[i];
    if (lane.site != one.site)
      fail("lane %d came to %s at %s:%d, lane 0 to %s at %s:%d", i, lane.site->meeting(), lane.site->file(), lane.site->line,
           one.site->meeting(), one.site->file(), one.site->line);
    if (lane.vote) any = 1, count++, first = i;
    if (lane.value > largest) largest = lane.value;
  }
  Kind kind = one.site->kind;
  for (int i = 0; i < num_lanes; i++) {
    lanes[i]->answer = kind == ANY ? any : kind == COUNT ? count : first;
    lanes[i]->largest = largest;
  }
}

/* Run one block. A failure leaves lanes where they are; the next block gets new ones. */
UNWATCHED void run_block() {
  int num_lanes = standin_num_lanes, order[MOST_LANES];
  for (Lane*& lane : lanes)
    if (failure[0]) delete lane, lane = nullptr;
  failure[0] = 0;
  for (int i = 0; i < num_lanes; i++) {
    if (!lanes[i]) lanes[i] = new Lane(run_lane);
    lanes[i]->done = false;
    order[i] = i;
  }
  for (unsigned char* byte = __start_shared_memory; byte < __stop_shared_memory; byte++)
    *byte = (unsigned char)random_below(256);
  for (;;) {
    RELEASE(departed);
    for (int i = num_lanes - 1; i > 0; i--) std::swap(order[i], order[random_below(i + 1)]);
    for (int i = 0; i < num_lanes; i++) {
      running = order[i];
      lanes[running]->fiber.resume();
    }
    ACQUIRE(arrived);
    int num_done = 0;
    const Site* waiting = nullptr;
    for (int i = 0; i < num_lanes; i++) num_done += lanes[i]->done, waiting = lanes[i]->done ? waiting : lanes[i]->site;
    if (num_done == num_lanes) return;
    if (num_done)
      fail("%d of %d lanes ended while the others wait for them in %s at %s:%d", num_done, num_lanes, waiting->meeting(),
           waiting->file(), waiting->line);
    else
      settle_meeting(num_lanes);
    if (failure[0]) return;
  }
}

}  // namespace

/* Each call in csrc is a site of its own; the functions that lanes.h declares are not called. */
#define SITE(kind)                                                   \
  []() -> Site& {                                                    \
    static constinit Site site{kind, __FILE__, __LINE__, 0, NOBODY}; \
    return site;                                                     \
  }()
#undef TG_ALONE
#define TG_ALONE if (works_for_all(SITE(ALONE)))
#define tg_lane() lane_now()
#define tg_meet() (void)meet(SITE(MEET), 0, 0)
#define tg_any(here) meet(SITE(ANY), here, 0).answer
#define tg_count(here) meet(SITE(COUNT), here, 0).answer
#define tg_first(here) meet(SITE(FIRST), here, 0).answer
#define tg_largest(here) meet(SITE(LARGEST), 0, here).largest

static struct {
  unsigned x;
} blockIdx;
#include "guard.cu"

/* --- the driver --- */

namespace {

struct Kernel {
  const char* name;
  void (*run)(const void* step);
  const tg_logits& (*logits)(const void* step);
};
template <typename Step>
const tg_logits& logits_of(const void* step) {
  return ((const Step*)step)->logits;
}
void run_slots(const void* step) { guard_slots(*(const tg_slots_step*)step); }
void run_sequences(const void* step) { guard_sequences(*(const tg_sequences_step*)step); }
void run_edits(const void* step) { guard_edits(*(const tg_edits_step*)step); }
/* For a test of the page below a lane's stack. */
void run_overflow(const void*) {
  char room[1 << 20];
  asm volatile("" : : "r"(room) : "memory"); /* it is needed, for all that the compiler knows */
}
const tg_logits& no_logits(const void*) {
  static const tg_logits none{};
  return none;
}
Kernel kernels[] = {
    {"guard_slots", run_slots, logits_of<tg_slots_step>},
    {"guard_sequences", run_sequences, logits_of<tg_sequences_step>},
    {"guard_edits", run_edits, logits_of<tg_edits_step>},
    {"overflow", run_overflow, no_logits},
};

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
enum { NUM_DEVICES = 2 };
std::mutex one_at_a_time; /* ctypes lets other threads run during a call */
int major_version = 9, minor_version = 0;
char refused[64];
int refusal, corrupt_after;
bool does_nothing;
struct {
  int number;
  const char* kernel;
  unsigned num_blocks, num_lanes;
  void *stream, *context;
} launch;
int primary[NUM_DEVICES];                 /* whose addresses are the devices' contexts */
thread_local std::vector<void*> contexts; /* the current one last */

bool is_context(const void* context) { return context == &primary[0] || context == &primary[1]; }
#define REFUSABLE \
  if (!strcmp(__func__, refused)) return refusal

}  // namespace

extern "C" {

/* So many lanes in each block, 1 to 128. */
void standin_use(int num_lanes) { standin_num_lanes = num_lanes; }
/* The orders of lanes begin anew. */
void standin_seed(uint64_t seed) { random_state = seed * 2 + 1; }
/* Compute capability. */
void standin_be(int major, int minor) { major_version = major, minor_version = minor; }
/* One function of the driver answers with an error; "": none does. */
void standin_refuse(const char* name, int status) {
  snprintf(refused, sizeof refused, "%s", name);
  refusal = status;
}
/* The launch behind so many others flips a bit of the first logit; -1: none does. */
void standin_corrupt(int after) { corrupt_after = after + 1; }
/* Launches return at once: what is left is the cost of the launcher. */
void standin_do_nothing(bool nothing) { does_nothing = nothing; }
/* At a line of csrc one lane passes a meeting by, EVERY (-2): all do, NOBODY (-1): none. Where lane 0 works for all, those work
 * as well. Returns 0 if no such site was reached yet. */
int standin_miss(const char* file, int line, int lane) {
  int found = 0;
  for (int i = 0; i < num_sites; i++)
    if (!strcmp(sites[i]->file(), file) && sites[i]->line == line) sites[i]->missing = lane, found = 1;
  return found;
}
/* The sites that were reached, and how often: "tg_meet machine.c 93 1200\n" each. Returns the characters that it takes. */
int standin_sites(char* text, int size) {
  int used = 0;
  for (int i = 0; i < num_sites; i++) {
    const Site& site = *sites[i];
    used += snprintf(text + (used < size ? used : 0), used < size ? size - used : 0, "%s %s %d %lld\n", site.meeting(),
                     site.file(), site.line, site.reached);
  }
  return used;
}
const void* standin_launch(void) { return &launch; }
const void* standin_library(void) { return kernels; }
const char* standin_failure(void) { return failure; }

int cuGetErrorName(int status, const char** name) {
  *name = status == LAUNCH_FAILED && failure[0] ? failure : status == NO_BINARY ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : nullptr;
  return *name ? SUCCESS : INVALID_VALUE;
}
int cuInit(unsigned) {
  REFUSABLE;
  return SUCCESS;
}
int cuDeviceGet(int* device, int ordinal) {
  REFUSABLE;
  if (ordinal < 0 || ordinal >= NUM_DEVICES) return INVALID_VALUE;
  *device = ordinal;
  return SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  REFUSABLE;
  if (device < 0 || device >= NUM_DEVICES || (attribute != 75 && attribute != 76)) return INVALID_VALUE;
  *value = attribute == 75 ? major_version : minor_version;
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  REFUSABLE;
  if (device < 0 || device >= NUM_DEVICES) return INVALID_VALUE;
  *context = &primary[device];
  return SUCCESS;
}
int cuLibraryLoadData(void** library, const void* image, void* options, void* values, unsigned num_options,
                      void* library_options, void* library_values, unsigned num_library_options) {
  REFUSABLE;
  if (options || values || num_options || library_options || library_values || num_library_options) return INVALID_VALUE;
  *library = kernels;
  return !memcmp(image, "\177ELF", 4) || strstr((const char*)image, ".version") ? SUCCESS : NO_BINARY;
}
int cuLibraryGetKernel(void** found, void* library, const char* name) {
  REFUSABLE;
  if (library != kernels) return INVALID_VALUE;
  for (Kernel& one : kernels)
    if (!strcmp(one.name, name)) return *found = &one, SUCCESS;
  return NOT_FOUND;
}
int cuKernelGetFunction(void** function, void* found) {
  REFUSABLE;
  if (contexts.empty()) return INVALID_CONTEXT;
  *function = found;
  return SUCCESS;
}
int cuCtxPushCurrent_v2(void* context) {
  REFUSABLE;
  if (!is_context(context)) return INVALID_CONTEXT;
  contexts.push_back(context);
  return SUCCESS;
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
int cuLaunchKernel(void* function, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void* stream, void** arguments, void** extra) {
  REFUSABLE;
  if (contexts.empty()) return INVALID_CONTEXT;
  if (!blocks || y != 1 || z != 1 || threads != 128 || threads_y != 1 || threads_z != 1 || shared || extra)
    return INVALID_VALUE;
  std::lock_guard<std::mutex> alone(one_at_a_time);
  const Kernel& one = *(const Kernel*)function;
  launch = {launch.number + 1, one.name, blocks, threads, stream, contexts.back()};
  if (does_nothing) return SUCCESS;
  kernel = one.run;
  argument = arguments[0];
  std::vector<unsigned> order(blocks); /* of the blocks, too: none may count on another */
  for (unsigned i = 0; i < blocks; i++) {
    unsigned other = random_below(i + 1);
    order[i] = order[other];
    order[other] = i;
  }
  for (unsigned block : order) {
    blockIdx.x = block;
    run_block();
    take_reports();
    if (failure[0]) return LAUNCH_FAILED;
  }
  if (corrupt_after && !--corrupt_after) *(unsigned char*)one.logits(argument).data ^= 1;
  return SUCCESS;
}

} /* extern "C" */
