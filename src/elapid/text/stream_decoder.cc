#include "elapid/text/stream_decoder.h"

#include "elapid/core/error.h"
#include "elapid/text/stage.h"
#include "elapid/text/tokenizer_impl.h"

#include <algorithm>
#include <utility>

namespace elapid {

struct StreamDecoder::Impl {
  Impl(const Tokenizer& from, std::vector<std::string> stops)
      : tokenizer(&from), stop_strings(std::move(stops)), chain(from.impl().decoder, sink) {}

  const Tokenizer* tokenizer;
  std::vector<std::string> stop_strings;
  TextSink sink;
  Chain chain;
  bool skip_first = false;  // the next character is the one that stands for the text before
  std::string pending;      // decoded, but the end of it may begin a stop string
  size_t searched = 0;      // no stop string ends within so much of it
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::vector<std::string> stop_strings, bool continues) {
  for (const std::string& stop : stop_strings)
    require(!stop.empty(), "stream decoder: a stop string must not be empty");
  impl_ = std::make_unique<Impl>(tokenizer, std::move(stop_strings));
  if (!continues) return;
  impl_->skip_first = true;
  impl_->chain.front().begin(Origin::behind);
  impl_->chain.front().feed("x", true);
}
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(TokenId id) {
  const Tokenizer::Impl& tokenizer = impl_->tokenizer->impl();
  const auto token = tokenizer.seen(tokenizer.entry(id), true);
  if (stopped_ || !token) return {};
  impl_->chain.front().begin(Origin::behind);
  impl_->chain.front().feed(*token, true);
  return release(false);
}

std::string StreamDecoder::finish() {
  if (stopped_) return {};
  impl_->chain.front().finish();
  return release(true);
}

std::string StreamDecoder::release(bool everything) {
  std::string& pending = impl_->pending;
  const size_t before = pending.size();
  pending += impl_->sink.take();
  if (impl_->skip_first && pending.size() > before) {
    pending.erase(before, 1);
    impl_->skip_first = false;
  }
  const std::vector<std::string>& stops = impl_->stop_strings;
  for (size_t end = impl_->searched + 1; end <= pending.size() && !stops.empty(); ++end) {
    const std::string_view seen = std::string_view(pending).substr(0, end);
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (seen.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest == 0) continue;
    stopped_ = true;
    pending.resize(end - longest);
    return std::exchange(pending, {});
  }
  size_t held = 0;
  for (const std::string& stop : stops) {
    for (size_t length = std::min(stop.size() - 1, pending.size()); length > held && !everything; --length) {
      if (pending.ends_with(std::string_view(stop).substr(0, length))) held = length;
    }
  }
  std::string certain = pending.substr(0, pending.size() - held);
  pending.erase(0, certain.size());
  impl_->searched = pending.size();
  return certain;
}

}  // namespace elapid
