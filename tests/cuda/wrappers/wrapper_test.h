// Tests of the functions of src/cuda/ptx/ that run on a GPU and on the emulator alike.
//
// A test runs small kernels on inputs made from a fixed seed. What it hands to Outputs must have the same
// bits in both worlds; what it hands to `expect` must hold in both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace flashmla::wrappers {

/// The first GPUs that have the instruction. kSm90a: these GPUs alone.
enum class Needs : std::uint8_t { kSm80, kSm89, kSm90, kSm90a };

/// Whether a GPU of this compute capability has it.
constexpr bool has(int major, int minor, Needs needs) {
  switch (needs) {
    case Needs::kSm80:
      return major >= 8;
    case Needs::kSm89:
      return major > 8 || (major == 8 && minor >= 9);
    case Needs::kSm90:
      return major >= 9;
    case Needs::kSm90a:
      return major == 9 && minor == 0;
  }
  return false;
}

/// What a test gives.
class Outputs {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    bytes_.insert(bytes_.end(), bytes, bytes + values.size() * sizeof(T));
  }
  /// `complaint` says what is wrong unless `holds`.
  void expect(bool holds, const std::string& complaint) {
    if (!holds) complaints_.push_back(complaint);
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::vector<std::string>& complaints() const { return complaints_; }

 private:
  std::vector<std::byte> bytes_;
  std::vector<std::string> complaints_;
};

struct WrapperTest {
  std::string name;
  Needs needs;
  void (*run)(Outputs&);
};

// A list a file.
std::vector<WrapperTest> thread_tests();
std::vector<WrapperTest> memory_tests();
std::vector<WrapperTest> cp_async_tests();
std::vector<WrapperTest> mbarrier_tests();
std::vector<WrapperTest> bulk_copy_tests();
std::vector<WrapperTest> multicast_tests();
std::vector<WrapperTest> cluster_tests();
std::vector<WrapperTest> control_tests();
std::vector<WrapperTest> register_tests();
std::vector<WrapperTest> matrix_tests();
std::vector<WrapperTest> store_matrix_tests();
std::vector<WrapperTest> wgmma_tests();
std::vector<WrapperTest> math_tests();
std::vector<WrapperTest> e4m3_tests();

/// All of them.
std::vector<WrapperTest> wrapper_tests();

}  // namespace flashmla::wrappers
