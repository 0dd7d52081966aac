#pragma once

// Token by token → text for a person to read: only ever emits valid UTF-8, holds back bytes of an unfinished character
// and text that may be the beginning of a stop string.

#include "elapid/text/tokenizer.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

// Without stop strings, everything that push() and finish() return is together what Tokenizer::decode makes of all ids,
// special tokens left out. With them, what they return does not depend on how the text is cut into tokens either: the
// stop string that is complete first counts, the longest of those that end together.
class StreamDecoder {
 public:
  // The tokenizer must outlive the decoder. `continues`: the tokens go on after a text, so that a space in front of the
  // first is one, which decoders drop that stand for a space added in front of every text.
  explicit StreamDecoder(const Tokenizer& tokenizer, std::vector<std::string> stop_strings = {},
                         bool continues = false);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  // Text that is certain after this token. Once a stop string has appeared (possibly across token borders), everything
  // before it has been emitted, nothing after it ever is, and stopped() is true.
  std::string push(TokenId id);
  // What was held back: an unfinished character becomes U+FFFD.
  std::string finish();
  [[nodiscard]] bool stopped() const { return stopped_; }

 private:
  struct Impl;
  std::string release(bool everything);

  std::unique_ptr<Impl> impl_;
  bool stopped_ = false;
};

}  // namespace elapid
