/* fiber.h: functions that run on stacks of their own and take turns in one thread.
 *
 * A page that cannot be touched lies below each stack: a function that needs more ends the process instead of writing over
 * something else. ASan and TSan are told of every switch; to TSan a fiber is a thread, and switching orders nothing.
 */
#ifndef THINKGUARD_TESTS_FIBER_H
#define THINKGUARD_TESTS_FIBER_H

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

/* Of functions that keep lanes in order, whose memory TSan is not to watch. */
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))

/* Where a thread or a fiber was left. On x86-64 the saved registers lie on its stack; elsewhere the C library saves them, and
 * the signal mask with two system calls. */
#if defined(__x86_64__)
using Place = void*;
extern "C" void fiber_switch(Place* from, Place to);
asm(R"(
.text
.type fiber_switch, @function
fiber_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size fiber_switch, .-fiber_switch
)");
#else
using Place = ucontext_t;
#endif

class Fiber {
 public:
  /* `run` is called by the first resume(), and must not return. */
  explicit Fiber(void (*run)()) : run_(run) {
    page_ = (size_t)sysconf(_SC_PAGESIZE);
    void* memory = mmap(nullptr, page_ + SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page_, PROT_NONE)) {
      perror("a fiber's stack");
      abort();
    }
    stack_ = (char*)memory + page_;
#if defined(__x86_64__)
    void** top = (void**)(stack_ + SIZE);
    *--top = nullptr; /* a return address, as a call would have pushed one */
    *--top = (void*)run_;
    place_ = top - 6; /* the registers that fiber_switch pops; zeros */
#else
    getcontext(&place_);
    place_.uc_stack.ss_sp = stack_;
    place_.uc_stack.ss_size = SIZE;
    makecontext(&place_, run_, 0);
#endif
#if defined(__SANITIZE_THREAD__)
    fiber_ = __tsan_create_fiber(0);
#endif
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /* Where it stands is given up: no destructors run there. */
  ~Fiber() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, SIZE);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(fiber_);
#endif
    munmap(stack_ - page_, page_ + SIZE);
  }

  /* Run it, from the thread, until it waits. */
  UNWATCHED void resume() {
#if defined(__SANITIZE_THREAD__)
    back_fiber_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake;
    __sanitizer_start_switch_fiber(&fake, stack_, SIZE);
#endif
    change(back_, place_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  /* Return, from within it, to the thread. */
  UNWATCHED void wait() {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(back_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, back_stack_, back_size_);
#endif
    change(place_, back_);
    resumed();
  }

  /* What `run` calls first. */
  UNWATCHED void resumed() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, &back_stack_, &back_size_);
#endif
  }

 private:
  static constexpr size_t SIZE = 256 << 10;

  static void change(Place& from, Place& to) {
#if defined(__x86_64__)
    fiber_switch(&from, to);
#else
    swapcontext(&from, &to);
#endif
  }

  void (*run_)();
  char* stack_;
  size_t page_;
  Place place_{}, back_{};
#if defined(__SANITIZE_ADDRESS__)
  void* fake_ = nullptr;
  const void* back_stack_ = nullptr;
  size_t back_size_ = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void *fiber_, *back_fiber_ = nullptr;
#endif
};

#endif
