// What is set up for a size of batch, kept for the sizes that were used last.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <list>

namespace vit {

// Plan has batch(), its size.
template <class Plan>
class Plans {
 public:
  explicit Plans(std::size_t most) : most_(most) {}

  // The plan of a size; unless there is one, it is made of these arguments and the size.
  template <class... Arguments>
  Plan& of(std::int64_t batch, Arguments&... arguments) {
    const auto found = std::find_if(plans_.begin(), plans_.end(),
                                    [&](const Plan& plan) { return plan.batch() == batch; });
    if (found != plans_.end()) {
      plans_.splice(plans_.begin(), plans_, found);
    } else {
      if (plans_.size() == most_) plans_.pop_back();  // first, as each holds its activations
      plans_.emplace_front(arguments..., batch);
    }
    return plans_.front();
  }
  void clear() { plans_.clear(); }

 private:
  std::size_t most_;
  std::list<Plan> plans_;  // the last used first
};

}  // namespace vit
