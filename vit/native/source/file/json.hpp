// A strict reader of JSON (RFC 8259) for headers and settings, which may come from anywhere.
//
//     text -> json::parse -> json::Value -> value.at("model.width").as_int()
//
// Every error is a std::runtime_error that names the place in the text, or the key of the value.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "file/json_value.hpp"

namespace json {

// Lists and objects in one another, at most; deeper text is refused.
constexpr int max_depth = 64;

// Reads one document; see `parse`.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value document() {
    Value value("the document", data(0));
    skip_space();
    if (place_ < text_.size()) fail("something follows the document");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw std::runtime_error("JSON, byte " + std::to_string(place_) + ": " + reason);
  }

  // The next byte, or 0 at the end of the text.
  char peek() const { return place_ < text_.size() ? text_[place_] : '\0'; }

  bool take(char wanted) {
    if (peek() != wanted || place_ == text_.size()) return false;
    ++place_;
    return true;
  }

  void skip_space() {
    while (place_ < text_.size() && std::string_view(" \t\n\r").find(text_[place_]) < 4) ++place_;
  }

  void expect(char wanted) {
    skip_space();
    if (!take(wanted)) fail(std::string("expected ") + wanted);
  }

  bool take_word(std::string_view word) {
    if (text_.substr(place_, word.size()) != word) return false;
    place_ += word.size();
    return true;
  }

  Value::Data data(int depth) {
    skip_space();
    const char first = peek();
    if (first == '{') return object(depth + 1);
    if (first == '[') return list(depth + 1);
    if (first == '"') return string();
    if (first == '-' || is_digit(first)) return number();
    if (take_word("true")) return true;
    if (take_word("false")) return false;
    if (take_word("null")) return nullptr;
    fail(place_ < text_.size() ? "expected a value" : "the text ends where a value is expected");
  }

  void open(int depth) {
    if (depth > max_depth) fail("more than " + std::to_string(max_depth) + " nested values");
    ++place_;
    skip_space();
  }

  Object object(int depth) {
    open(depth);
    Values members;
    if (take('}')) return {};
    do {
      skip_space();
      if (peek() != '"') fail("expected a key in quotes");
      std::string key = string();
      expect(':');
      members.emplace_back(std::move(key), data(depth));
      skip_space();
    } while (take(','));
    expect('}');
    std::sort(members.begin(), members.end(),
              [](const Value& a, const Value& b) { return a.name() < b.name(); });
    const auto twice =
        std::adjacent_find(members.begin(), members.end(),
                           [](const Value& a, const Value& b) { return a.name() == b.name(); });
    if (twice != members.end()) fail("the object before has the key " + twice->name() + " twice");
    return {std::move(members)};
  }

  List list(int depth) {
    open(depth);
    Values elements;
    if (take(']')) return {};
    do {
      elements.emplace_back("[" + std::to_string(elements.size()) + "]", data(depth));
      skip_space();
    } while (take(','));
    expect(']');
    return {std::move(elements)};
  }

  static bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }

  void take_digits() {
    if (!is_digit(peek())) fail("expected a digit");
    while (is_digit(peek())) ++place_;
  }

  Number number() {
    const std::size_t start = place_;
    take('-');
    if (!take('0')) take_digits();  // no digit may follow a leading zero
    if (is_digit(peek())) fail("a number begins with 0");
    bool whole = true;
    if (take('.')) {
      whole = false;
      take_digits();
    }
    if (take('e') || take('E')) {
      whole = false;
      if (!take('+')) take('-');
      take_digits();
    }
    const char* const first = text_.data() + start;
    const char* const last = text_.data() + place_;
    Number number;
    if (std::from_chars(first, last, number.real).ec != std::errc()) {
      fail("a number that no double holds");
    }
    std::int64_t integer = 0;
    if (whole && std::from_chars(first, last, integer).ec == std::errc()) number.integer = integer;
    return number;
  }

  std::string string() {
    ++place_;  // the quote
    std::string result;
    while (!take('"')) {
      if (place_ == text_.size()) fail("a string has no end");
      const auto byte = static_cast<unsigned char>(peek());
      if (byte < 0x20) fail("a control character in a string");
      if (take('\\')) {
        append_escape(result);
      } else if (byte < 0x80) {
        result += text_[place_++];
      } else {
        append_sequence(result);
      }
    }
    return result;
  }

  // Copies a UTF-8 sequence of several bytes.
  void append_sequence(std::string& result) {
    const auto byte = static_cast<unsigned char>(peek());
    const std::size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    if (byte < 0xC2 || byte > 0xF4 || text_.size() - place_ < length) fail("no UTF-8");
    std::uint32_t code = byte & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
      const auto next = static_cast<unsigned char>(text_[place_ + i]);
      if ((next & 0xC0U) != 0x80U) fail("no UTF-8");
      code = code << 6U | (next & 0x3FU);
    }
    constexpr std::uint32_t least[] = {0x80, 0x800, 0x10000};  // shorter forms are forbidden
    if (code < least[length - 2] || code > 0x10FFFF || is_surrogate(code)) fail("no UTF-8");
    result += text_.substr(place_, length);
    place_ += length;
  }

  static bool is_surrogate(std::uint32_t code) { return code >= 0xD800 && code < 0xE000; }

  void append_escape(std::string& result) {
    constexpr std::string_view letters = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const std::size_t letter = place_ < text_.size() ? letters.find(peek()) : letters.npos;
    if (letter != letters.npos) {
      ++place_;
      result += meanings[letter];
      return;
    }
    if (!take('u')) fail("an unknown escape in a string");
    std::uint32_t code = four_digits();
    if (is_surrogate(code)) {
      if (code >= 0xDC00 || !take_word("\\u")) fail("half of a surrogate pair");
      const std::uint32_t low = four_digits();
      if (low < 0xDC00 || low >= 0xE000) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10U) + (low - 0xDC00);
    }
    append_code(result, code);
  }

  std::uint32_t four_digits() {
    const std::string_view digits = text_.substr(place_, 4);
    std::uint32_t code = 0;
    const char* const last = digits.data() + digits.size();
    const auto [end, error] = std::from_chars(digits.data(), last, code, 16);
    if (digits.size() < 4 || error != std::errc() || end != last) {
      fail("expected four hexadecimal digits");
    }
    place_ += 4;
    return code;
  }

  static void append_code(std::string& result, std::uint32_t code) {
    const auto add = [&result](std::uint32_t byte) { result += static_cast<char>(byte); };
    if (code < 0x80) return add(code);
    if (code < 0x800) {
      add(0xC0 | code >> 6U);
    } else if (code < 0x10000) {
      add(0xE0 | code >> 12U);
      add(0x80 | (code >> 6U & 0x3F));
    } else {
      add(0xF0 | code >> 18U);
      add(0x80 | (code >> 12U & 0x3F));
      add(0x80 | (code >> 6U & 0x3F));
    }
    add(0x80 | (code & 0x3F));
  }

  std::string_view text_;
  std::size_t place_ = 0;
};

// Reads a document that is the whole text.
//
// std::runtime_error with the place for anything that RFC 8259 forbids, and beyond it for a key
// that an object has twice, for text that is no UTF-8, for halves of surrogate pairs, for numbers
// that no double holds, and for more than `max_depth` nested values.
inline Value parse(std::string_view text) { return Parser(text).document(); }

}  // namespace json
