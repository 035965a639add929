// Asynchronous work that was issued and has not happened yet.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/emulator/random.h"

namespace flashmla::emulator {

/// Carries out asynchronous operations of one kind: a thread's cp.async, a warpgroup's products, bulk copies.
class Agent {
 public:
  /// Carries out one operation that may happen now.
  virtual void perform_one(Random& random) = 0;

 protected:
  Agent() = default;
  ~Agent() = default;

 private:
  friend class Agenda;
  static constexpr std::size_t kNowhere = ~std::size_t{0};
  std::size_t position_ = kNowhere;
};

/// The agents of a cluster that have work.
class Agenda {
 public:
  /// Does nothing if the agent is listed.
  void add(Agent& agent) {
    if (agent.position_ != Agent::kNowhere) return;
    agent.position_ = agents_.size();
    agents_.push_back(&agent);
  }

  /// Does nothing if the agent is not listed.
  void remove(Agent& agent) {
    if (agent.position_ == Agent::kNowhere) return;
    agents_.back()->position_ = agent.position_;
    agents_[agent.position_] = agents_.back();
    agents_.pop_back();
    agent.position_ = Agent::kNowhere;
  }

  bool empty() const { return agents_.empty(); }

  void perform_one(Random& random) {
    agents_[random.below(static_cast<std::uint32_t>(agents_.size()))]->perform_one(random);
  }

 private:
  std::vector<Agent*> agents_;
};

}  // namespace flashmla::emulator
