// Stands for gpu_loops.cu in a build without CUDA.
#include "cli/gpu_loops.h"
#include "flashmla/error.h"

namespace flashmla::cli {
namespace {

[[noreturn]] void fail() { throw Error(ErrorKind::kUnsupported, "flashmla: built without CUDA"); }

}  // namespace

void launch_mma_product(const MmaProduct&, int, void*) { fail(); }
void launch_mma_peak(float*, int, int, void*) { fail(); }
double mma_peak_flops() { fail(); }

}  // namespace flashmla::cli
