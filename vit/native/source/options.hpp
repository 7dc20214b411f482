// The options of vit_open, and the files of a checkpoint.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/device.hpp"

namespace vit {

// "name=value,name=value" -> names and values; a name alone has the value "".
std::vector<std::pair<std::string, std::string>> settings_of(const std::string& text);

// "precision=int8,threads=4" -> Options; std::runtime_error names what is unknown.
Options parse_options(const std::string& text);

// The file of weights of a checkpoint: that of a folder, or the path itself.
std::string weights_path(const std::string& checkpoint);
// config.json beside the weights; it need not exist.
std::string config_path(const std::string& checkpoint);

}  // namespace vit
