/* fixed_inputs.c: the fuzz target on inputs drawn from one seed, for where there is no libFuzzer: fixed_inputs NUM. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

static uint32_t draw(uint64_t* seed) { /* a linear congruential generator: the same inputs on every machine */
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(*seed >> 33);
}

int main(int argc, char** argv) {
  long num = argc > 1 ? strtol(argv[1], NULL, 10) : 1000;
  uint64_t seed = 1;
  static uint8_t data[1024];
  for (long i = 0; i < num; i++) {
    size_t size = draw(&seed) % sizeof data;
    for (size_t at = 0; at < size; at++) data[at] = (uint8_t)draw(&seed);
    LLVMFuzzerTestOneInput(data, size);
  }
  printf("%ld inputs\n", num);
  return 0;
}
