// Whether the CUDA part can run on a device; asking creates no context there.
#include "device.h"

extern "C" int32_t intermoe_check_cuda(int32_t device) {
#ifndef INTERMOE_EMULATED
  int count = 0, major = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return intermoe::fail("%s", cudaGetErrorString(error));
  }
  if (major < 8) return intermoe::fail("its compute capability is %d.x, below 8.0", major);
#endif
  (void)device;
  return 0;
}
