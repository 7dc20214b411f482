#include "file/shape.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "file/json.hpp"
#include "file/limits.hpp"

namespace vit {
namespace {

constexpr std::uintmax_t max_config = 10'000'000;  // bytes; that of a run has a hundredth of it

std::string read_text(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) throw std::runtime_error("it is no file");
  if (std::filesystem::file_size(path) > max_config) throw std::runtime_error("it is too large");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("it cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// Reads what tensors do not show from a table whose keys begin with `prefix`; returns whether heads
// are among it.
bool read_facts(const json::Value& table, const std::string& prefix, Shape& shape) {
  if (const json::Value* heads = table.find(prefix + "heads")) shape.heads = heads->as_int();
  if (const json::Value* eps = table.find(prefix + "norm_eps")) {
    shape.norm_eps = static_cast<float>(eps->as_double());
  }
  if (const json::Value* gelu = table.find(prefix + "gelu")) {
    const std::string& kind = gelu->as_string();
    if (kind != "exact" && kind != "tanh") {
      throw std::runtime_error(prefix + "gelu is " + kind + "; known: exact, tanh");
    }
    shape.tanh_gelu = kind == "tanh";
  }
  if (const json::Value* positions = table.find(prefix + "positions")) {
    const std::string& kind = positions->as_string();
    if (kind != "learned" && kind != "sincos2d") {
      throw std::runtime_error(prefix + "positions is " + kind + "; known: learned, sincos2d");
    }
    shape.fixed_positions = kind == "sincos2d";
  }
  if (const json::Value* rate = table.find(prefix + "dropout")) shape.dropout = rate->as_double();
  if (const json::Value* rate = table.find(prefix + "drop_path")) {
    shape.drop_path = rate->as_double();
  }
  return table.find(prefix + "heads") != nullptr;
}

// Config.json first, then what the file says of itself, as in Python.
bool read_facts(const TensorFile& file, const std::string& config_path, Shape& shape) {
  bool states_heads = false;
  const auto metadata = file.metadata().find("vit");
  if (std::filesystem::exists(config_path)) {
    try {
      states_heads = read_facts(json::parse(read_text(config_path)), "model.", shape);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(config_path + ": " + error.what());
    }
  }
  if (metadata != file.metadata().end()) {
    try {
      states_heads |= read_facts(json::parse(metadata->second), "", shape);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(file.path() + ", metadata vit: " + error.what());
    }
  }
  return states_heads;
}

std::int64_t depth_of(const TensorFile& file) {
  std::int64_t depth = 0;
  while (file.has("blocks." + std::to_string(depth) + ".norm1.weight")) ++depth;
  return depth;
}

// Heads where nothing states them: those of the published models whose heads are not of 64
// channels (H, g and G of Zhai et al. 2022, and So400m), else one for each 64 channels.
std::int64_t heads_of(const Shape& shape) {
  for (const auto& [width, depth] : {std::pair{1280, 32}, {1408, 40}, {1664, 48}, {1152, 27}}) {
    if (shape.width == width && shape.depth == depth) return 16;
  }
  return shape.width % 64 ? 0 : shape.width / 64;
}

// Side of the grid of patches, from the rows of pos_embed without or with the prefix.
std::int64_t grid_of(std::int64_t positions, std::int64_t prefix) {
  for (std::int64_t patches : {positions, positions - prefix}) {
    const auto grid =
        static_cast<std::int64_t>(std::llround(std::sqrt(std::max<double>(0, patches))));
    if (grid > 0 && grid * grid == patches) return grid;
  }
  return 0;
}

}  // namespace

Shape shape_of(const TensorFile& file, const std::string& config_path) {
  const auto fail = [&](const std::string& reason) {
    throw std::runtime_error(file.path() + ": " + reason);
  };
  for (const char* name : {"patch_embed.proj.weight", "pos_embed", "blocks.0.norm1.weight",
                           "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight"}) {
    if (!file.has(name)) {
      fail(std::string("has no ") + name +
           ", so it is no ViT under timm's names; python -m pipeline export --to timm writes one");
    }
  }
  for (const char* name : {"attn_pool.latent", "blocks.0.attn.q_norm.weight"}) {
    if (file.has(name)) {
      fail(std::string("has ") + name + ": attention pooling and norms of queries and keys are " +
           "computed by the PyTorch model only");
    }
  }
  const auto& kernel = file.entry("patch_embed.proj.weight").shape;
  const auto& positions = file.entry("pos_embed").shape;
  const auto& fc1 = file.entry("blocks.0.mlp.fc1.weight").shape;
  if (kernel.size() != 4 || positions.size() != 3 || fc1.size() != 2) {
    fail("has patch_embed.proj.weight, pos_embed or blocks.0.mlp.fc1.weight with other axes");
  }
  Shape shape;
  shape.width = kernel[0], shape.patch = kernel[3];
  shape.depth = depth_of(file);
  shape.hidden = fc1[0];
  shape.positions = positions[1];
  shape.class_token = file.has("cls_token");
  if (file.has("reg_token")) {
    const auto& registers = file.entry("reg_token").shape;
    shape.registers = registers.size() == 3 ? registers[1] : -1;
  }
  shape.qkv_bias = file.has("blocks.0.attn.qkv.bias");
  shape.layer_scale = file.has("blocks.0.ls1.gamma");
  shape.fc_norm = file.has("fc_norm.weight");
  shape.pre_logits = file.has("pre_logits.fc.weight");
  shape.head = file.has("head.weight");
  const auto& head = shape.head ? file.entry("head.weight").shape : kernel;
  shape.outputs = head.empty() ? 0 : head[0];
  if (shape.fc_norm && shape.class_token) {
    fail("has cls_token and fc_norm.weight, which is the mean over the patches beside a class" +
         std::string(" token: it is computed by the PyTorch model only"));
  }
  shape.heads = heads_of(shape);
  const bool has_heads = shape.heads > 0;
  if (!read_facts(file, config_path, shape) && !has_heads) {
    fail("does not state the number of heads, which a width of " + std::to_string(shape.width) +
         " does not show; give a checkpoint folder with its config.json");
  }
  for (std::int64_t side : {shape.width, shape.patch, shape.hidden, shape.outputs, shape.heads,
                            shape.registers + 1, shape.positions}) {
    if (side < 1 || side > max_side) fail("states a size of " + std::to_string(side));
  }
  if (shape.width % shape.heads) {
    fail("has a width of " + std::to_string(shape.width) + ", which " +
         std::to_string(shape.heads) + " heads do not divide");
  }
  if (!(shape.norm_eps > 0 && shape.norm_eps < 1)) fail("states a norm_eps outside of 0 to 1");
  const std::int64_t grid = grid_of(shape.positions, shape.prefix());
  if (grid == 0) fail("has " + std::to_string(shape.positions) + " positions, which is no square");
  shape.image = grid * shape.patch;
  if (shape.image > max_pixels / shape.image) {
    fail("states images of " + std::to_string(shape.image) + " pixels a side");
  }
  return shape;
}

}  // namespace vit
