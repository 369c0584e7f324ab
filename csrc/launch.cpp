// Kernels of another compiler, started through the CUDA driver: all launches of a call at once. The driver is opened by
// name and its few types are spelled out, so that neither its headers nor its library are needed to build.
#include "common.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace {

// cuLaunchKernel
using Start = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters,
                      void** extra);

constexpr int64_t kMostPlaces = 256, kMostParameters = 64;

}  // namespace

extern "C" {

int64_t intermoe_open_driver(const char* name) {
#if defined(_WIN32)
  intermoe::fail("%s: launches through the CUDA driver are for Linux", name);
  return 0;
#else
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  void* start = library == nullptr ? nullptr : dlsym(library, "cuLaunchKernel");
  if (start == nullptr) {
    const char* reason = dlerror();
    intermoe::fail("%s", reason == nullptr ? name : reason);
  }
  return reinterpret_cast<int64_t>(start);
#endif
}

int32_t intermoe_launch(int64_t driver, int64_t* program, const int64_t* bases, void* stream) {
  const Start start = reinterpret_cast<Start>(driver);
  const int64_t launches = program[0], places = program[1];
  if (places > kMostPlaces) return intermoe::fail("places: expected at most %d", static_cast<int>(kMostPlaces)), -1;
  int64_t pointers[kMostPlaces];
  const int64_t* place = program + 2;
  for (int64_t i = 0; i < places; ++i, place += 2) pointers[i] = bases[place[0]] + place[1];
  const int64_t* next = place;
  for (int64_t launch = 0; launch < launches; ++launch) {
    const int64_t *size = next + 1, *sources = next + 7, count = next[6];
    if (count > kMostParameters)
      return intermoe::fail("parameters: expected at most %d", static_cast<int>(kMostParameters)), -1;
    void* parameters[kMostParameters];
    for (int64_t i = 0; i < count; ++i) parameters[i] = sources[i] >= 0 ? pointers + sources[i] : program - sources[i];
    const int code = start(reinterpret_cast<void*>(next[0]), static_cast<unsigned>(size[0]),
                           static_cast<unsigned>(size[1]), static_cast<unsigned>(size[2]),
                           static_cast<unsigned>(size[3]), 1, 1, static_cast<unsigned>(size[4]), stream, parameters,
                           nullptr);
    if (code != 0) {
      intermoe::fail("launch %d of %d: the CUDA driver says %d", static_cast<int>(launch + 1),
                     static_cast<int>(launches), code);
      return launch == 0 ? code : -1;
    }
    next = sources + count;
  }
  return 0;
}

}  // extern "C"
