// A stand-in for the CUDA driver: it records what is launched. A kernel's handle is the address of a Kernel.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Kernel {
  int64_t number;      // by which the log names it
  int64_t parameters;
  int64_t widths[64];  // bytes of each parameter
  int64_t filled;      // parameter that points to int64 numbers which the kernel would have written, or -1
  int64_t count;       // of these numbers
  int64_t values[65];
};

std::vector<int64_t> launched;
bool recording = false;

}  // namespace

extern "C" {

// of the next launches; 0 is success
int standin_answer = 0;

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra) {
  if (standin_answer != 0) return standin_answer;
  const Kernel* kernel = static_cast<const Kernel*>(function);
  if (kernel->filled >= 0) {
    void* array;
    std::memcpy(&array, parameters[kernel->filled], sizeof array);
    std::memcpy(array, kernel->values, static_cast<size_t>(kernel->count) * sizeof(int64_t));
  }
  if (!recording) return 0;
  const int64_t head[] = {kernel->number, grid_x, grid_y, grid_z, static_cast<int64_t>(block_x) * block_y * block_z,
                          shared, reinterpret_cast<int64_t>(stream), extra != nullptr, kernel->parameters};
  launched.insert(launched.end(), head, head + sizeof head / sizeof *head);
  for (int64_t i = 0; i < kernel->parameters; ++i) {
    int64_t value = 0;
    std::memcpy(&value, parameters[i], static_cast<size_t>(kernel->widths[i]));
    launched.push_back(value);
  }
  return 0;
}

// Starts or stops recording, and forgets.
void standin_record(int on) {
  recording = on != 0;
  launched.clear();
}

int64_t standin_size(void) { return static_cast<int64_t>(launched.size()); }

const int64_t* standin_log(void) { return launched.data(); }

}  // extern "C"
