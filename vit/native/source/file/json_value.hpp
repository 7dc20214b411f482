// The values of a JSON document: what they are, and what they must be.
//
//     value.at("model.width").as_int()
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace json {

// A number: its nearest double, and its integer if it is written as one that int64 holds.
struct Number {
  double real = 0;
  std::optional<std::int64_t> integer;
};

class Value;
using Values = std::vector<Value>;

// Elements of a list, in their order.
struct List {
  Values values;
};

// Members of an object, in the order of their names, each name once.
struct Object {
  Values values;
};

// One value of a document: null, a boolean, a number, a string, a list or an object.
class Value {
 public:
  using Data = std::variant<std::nullptr_t, bool, Number, std::string, List, Object>;

  Value(std::string name, Data data) : name_(std::move(name)), data_(std::move(data)) {}

  // Its key in the object, its place in the list such as "[2]", or "the document".
  const std::string& name() const { return name_; }
  bool is_object() const { return std::holds_alternative<Object>(data_); }

  // The value as what it must be; std::runtime_error names it if it is something else.
  bool as_bool() const { return as<bool>("true or false"); }
  double as_double() const { return as<Number>("a number").real; }
  const std::string& as_string() const { return as<std::string>("a string"); }
  std::int64_t as_int() const {
    const Number& number = as<Number>("an integer");
    if (!number.integer) throw std::runtime_error(name_ + " is no integer of 64 bits");
    return *number.integer;
  }

  // Elements of a list, or members of an object, whose name() is their key.
  const Values& items() const {
    if (const List* list = std::get_if<List>(&data_)) return list->values;
    return as<Object>("a list or an object").values;
  }

  // The member of an object with this key, or null if there is none.
  const Value* find(std::string_view key) const;
  // The same; std::runtime_error if there is none.
  const Value& at(std::string_view key) const;

 private:
  template <class Type>
  const Type& as(const char* expected) const {
    if (const Type* found = std::get_if<Type>(&data_)) return *found;
    constexpr const char* kinds[] = {"null",     "a boolean", "a number",
                                     "a string", "a list",    "an object"};
    throw std::runtime_error(name_ + " is " + kinds[data_.index()] + ", not " + expected);
  }

  std::string name_;
  Data data_;
};

inline const Value* Value::find(std::string_view key) const {
  const Values& members = as<Object>("an object").values;
  const auto place = std::lower_bound(
      members.begin(), members.end(), key,
      [](const Value& member, std::string_view wanted) { return member.name() < wanted; });
  return place != members.end() && place->name() == key ? &*place : nullptr;
}

inline const Value& Value::at(std::string_view key) const {
  if (const Value* found = find(key)) return *found;
  throw std::runtime_error(name_ + " has no " + std::string(key));
}

}  // namespace json
