// Classifies image files without Python: a program over the functions of vit.h.
//
//     classify CHECKPOINT photo.jpg -> photo.jpg
//                                        0.9671  n02099601
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "file/json.hpp"
#include "vit.h"

namespace {

constexpr const char* usage =
    "usage: classify [--top K] [--precision P] [--threads N] CHECKPOINT IMAGE...\n";
constexpr const char* help =
    "\n"
    "Classify images: the most likely classes of each, with their probabilities.\n"
    "\n"
    "  CHECKPOINT     folder of a checkpoint, with model.safetensors, config.json and meta.json;\n"
    "                 or a safetensors file, whose classes are numbers if it lies alone\n"
    "  IMAGE          JPEG, PNG or binary PPM file\n"
    "  --top K        classes of each image, at most all of the head (default: 5)\n"
    "  --precision P  float32 (default), bfloat16, or int8 for a file that was quantised;\n"
    "                 with the back end cuda also tf32, and float8 for the latter\n"
    "  --threads N    threads; 0, the default, takes one for each core\n"
    "\n"
    "An image is prepared as in an evaluation with the centre crop. Images that cannot be read\n"
    "are named. The status is 0, or 2 if none can be read and for bad arguments.\n";

// The command line.
struct Arguments {
  bool wants_help = false;
  std::int64_t top = 5;
  std::string options;  // of vit_open
  std::string checkpoint;
  std::vector<std::string> images;
};

std::int64_t number_of(const std::string& name, const std::string& text, std::int64_t least) {
  std::int64_t number = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number);
  if (error != std::errc() || end != last || number < least) {
    throw std::invalid_argument(name + " is " + text + "; give a number of at least " +
                                std::to_string(least));
  }
  return number;
}

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  std::vector<std::string> places;
  for (auto word = words.begin(); word != words.end(); ++word) {
    if (*word == "--help" || *word == "-h") {
      arguments.wants_help = true;
      return arguments;
    }
    if (*word == "--") {
      places.insert(places.end(), word + 1, words.end());
      break;
    }
    if (word->size() < 2 || word->front() != '-') {
      places.push_back(*word);
      continue;
    }
    const std::string name = *word;
    if (name != "--top" && name != "--precision" && name != "--threads") {
      throw std::invalid_argument("unknown option " + name);
    }
    if (++word == words.end()) throw std::invalid_argument(name + " lacks its value");
    if (name == "--top") {
      arguments.top = number_of(name, *word, 1);
    } else {
      arguments.options += (arguments.options.empty() ? "" : ",") + name.substr(2) + "=" + *word;
    }
  }
  if (places.size() < 2) throw std::invalid_argument("give a CHECKPOINT and at least one IMAGE");
  arguments.checkpoint = places.front();
  arguments.images.assign(places.begin() + 1, places.end());
  return arguments;
}

// An image that is no image.
struct Unreadable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws the words of the library's error.
template <class Error = std::runtime_error>
void check(int status) {
  if (status) throw Error(vit_error());
}

// A file of the checkpoint besides the weights: its text, or nothing if there is no such file.
std::optional<std::string> text_of(const std::string& checkpoint, const char* name) {
  const std::filesystem::path path(checkpoint);
  const auto folder = std::filesystem::is_directory(path) ? path : path.parent_path();
  if (!std::filesystem::exists(folder / name)) return std::nullopt;
  std::ifstream file(folder / name, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file) throw std::runtime_error((folder / name).string() + " cannot be read");
  return text;
}

// Names of the head's outputs: the ids in meta.json, or numbers without such a file.
std::vector<std::string> class_names(const std::string& checkpoint, std::int64_t outputs) {
  std::vector<std::string> names;
  if (const auto meta = text_of(checkpoint, "meta.json")) {
    const json::Value parsed = json::parse(*meta);
    for (const json::Value& name : parsed.at("classes").items()) names.push_back(name.as_string());
    if (static_cast<std::int64_t>(names.size()) != outputs) {
      throw std::runtime_error("meta.json names " + std::to_string(names.size()) +
                               " classes, but the model has " + std::to_string(outputs) +
                               " outputs");
    }
    return names;
  }
  for (std::int64_t i = 0; i < outputs; ++i) names.push_back(std::to_string(i));
  return names;
}

// Whether a config.json says how images are prepared.
bool states_images(const json::Value& config) {
  const json::Values& settings = config.items();
  return std::any_of(settings.begin(), settings.end(), [](const json::Value& setting) {
    return setting.name().rfind("images.", 0) == 0;
  });
}

bool is_sigmoid(const json::Value& config) {
  const json::Value* loss = config.find("loss.name");
  return loss && loss->as_string() == "sigmoid";
}

// A model with what it takes to use it on files.
class Classifier {
 public:
  Classifier(const std::string& checkpoint, const std::string& options) {
    vit_model* model = nullptr;
    check(vit_open(checkpoint.c_str(), options.c_str(), &model));
    model_.reset(model);
    check(vit_describe(model, &description_));
    config_ = text_of(checkpoint, "config.json");
    if (config_) read(json::parse(*config_));
    names_ = class_names(checkpoint, description_.outputs);
  }

  // Prints the most likely classes of a file; Unreadable if it is no image.
  void classify(const std::string& path, std::int64_t top) const {
    const std::vector<double> shares = probabilities(logits(path));
    std::vector<std::size_t> order(shares.size());
    std::iota(order.begin(), order.end(), 0);
    const auto shown = std::min<std::ptrdiff_t>(top, order.size());
    std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                      [&](std::size_t a, std::size_t b) {
                        return shares[a] != shares[b] ? shares[a] > shares[b] : a < b;
                      });
    std::printf("%s\n", path.c_str());
    for (auto place = order.begin(); place != order.begin() + shown; ++place) {
      std::printf("  %.4f  %s\n", shares[*place], names_[*place].c_str());
    }
  }

 private:
  void read(const json::Value& config) {
    if (!states_images(config)) {
      throw std::runtime_error("config.json states no preprocessing of images; give a checkpoint" +
                               std::string(" of a run, or a safetensors file alone"));
    }
    is_sigmoid_ = is_sigmoid(config);
  }

  std::vector<float> logits(const std::string& path) const {
    vit_image* opened = nullptr;
    check<Unreadable>(vit_read_image(path.c_str(), &opened));
    const std::unique_ptr<vit_image, void (*)(vit_image*)> image(opened, vit_free_image);
    const std::int64_t side = description_.image_size;
    std::vector<float> view(3 * side * side), result(description_.outputs);
    const char* const config = config_ ? config_->c_str() : nullptr;
    check<Unreadable>(vit_eval_view(opened, config, side, view.data()));
    check(vit_forward(model_.get(), view.data(), 1, result.data()));
    if (!std::all_of(result.begin(), result.end(), [](float x) { return std::isfinite(x); })) {
      throw std::runtime_error("the model's outputs for " + path + " are not all finite");
    }
    return result;
  }

  std::vector<double> probabilities(const std::vector<float>& logits) const {
    std::vector<double> shares(logits.size());
    const double most = *std::max_element(logits.begin(), logits.end());
    std::transform(logits.begin(), logits.end(), shares.begin(), [&](double logit) {
      return is_sigmoid_ ? 1 / (1 + std::exp(-logit)) : std::exp(logit - most);
    });
    if (is_sigmoid_) return shares;
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) share /= sum;
    return shares;
  }

  std::unique_ptr<vit_model, void (*)(vit_model*)> model_{nullptr, vit_close};
  vit_description description_{};
  std::optional<std::string> config_;
  std::vector<std::string> names_;
  bool is_sigmoid_ = false;
};

// Classifies all images; returns the exit status.
int run(const Arguments& arguments) {
  const Classifier classifier(arguments.checkpoint, arguments.options);
  const std::size_t total = arguments.images.size();
  std::size_t unread = 0;
  for (const std::string& path : arguments.images) {
    try {
      classifier.classify(path, arguments.top);
    } catch (const Unreadable& error) {
      std::printf("%s\n  cannot be read: %s\n", path.c_str(), error.what());
      ++unread;
    }
  }
  std::printf("classified  %zu of %zu images\n", total - unread, total);
  return unread < total ? 0 : 2;
}

}  // namespace

int main(int count, char** words) {
  try {
    const Arguments arguments = parse({words + 1, words + count});
    if (arguments.wants_help) {
      std::printf("%s%s", usage, help);
      return 0;
    }
    return run(arguments);
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%sclassify: %s\n", usage, error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
  }
  return 2;
}
