// How kernels run on the emulator: the seed of every choice, what is checked, and the GPU that is imitated.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmla::emulator {

/// When asynchronous work (copies, wgmma) happens: at any moment between its issue and the wait for it, at
/// its issue, or only when nothing else can run. A correct kernel gives the same result with each.
enum class Mode { kRandom, kEarly, kLate };

/// The limits of the imitated GPU. The defaults are an H200's.
struct Device {
  int sm_count = 132;
  int compute_major = 9;
  int compute_minor = 0;
  std::size_t shared_bytes_per_block = 227 * 1024;  // with opt-in
};

/// Whether plain accesses are seen. Not with AddressSanitizer: the compiler inserts one kind of calls only.
#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kSeesAccesses = false;
#else
inline constexpr bool kSeesAccesses = true;
#endif

struct Settings {
  std::uint64_t seed = 0;
  Mode mode = Mode::kRandom;
  /// Look for races, reads of what nobody wrote, and plain accesses outside of registered memory. Needs
  /// kSeesAccesses, and kernels that flashmla_emulated_kernels() of CMake compiles.
  bool checked = false;
  int threads = 2;  // of the host, which run clusters in parallel
  Device device = {};
};

/// What holds for launches of the calling host thread.
const Settings& settings();

/// Replaces the settings of the calling host thread for the lifetime of this object.
class ScopedSettings {
 public:
  explicit ScopedSettings(const Settings& settings);
  ~ScopedSettings();
  ScopedSettings(const ScopedSettings&) = delete;
  ScopedSettings& operator=(const ScopedSettings&) = delete;

 private:
  Settings before_;
};

}  // namespace flashmla::emulator
