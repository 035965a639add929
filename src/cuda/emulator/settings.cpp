// The settings of each host thread.
#include "cuda/emulator/settings.h"

namespace flashmla::emulator {
namespace {

thread_local Settings current_settings;

}  // namespace

const Settings& settings() { return current_settings; }

ScopedSettings::ScopedSettings(const Settings& settings) : before_(current_settings) {
  current_settings = settings;
}

ScopedSettings::~ScopedSettings() { current_settings = before_; }

}  // namespace flashmla::emulator
