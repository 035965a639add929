// What the emulator does with launches, apart from the faults of kernels.
#include <gtest/gtest.h>
