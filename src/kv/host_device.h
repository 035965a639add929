// Marks functions that host code and CUDA device code share.
#pragma once

#ifdef __CUDACC__
#define FLASHMLA_HOST_DEVICE __host__ __device__
#else
#define FLASHMLA_HOST_DEVICE
#endif
