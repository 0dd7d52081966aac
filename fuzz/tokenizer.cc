// A tokenizer.json and a text, with a zero byte between them (JSON has none): encoding in pieces must give what
// encoding at once gives, and streamed decoding must be valid UTF-8.

#include "elapid/text/tokenizer.h"

#include "elapid/text/stream_decoder.h"
#include "fuzz/property.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {
namespace {

bool encode_in_pieces(const Tokenizer& tokenizer, std::string_view text, size_t piece, std::vector<TokenId>& ids) {
  return succeeds([&] {
    EncodeStream stream(tokenizer);
    for (size_t begin = 0; begin < text.size(); begin += piece) stream.push(text.substr(begin, piece), ids);
    stream.finish(ids);
  });
}

void run(std::string_view input) {
  const size_t zero = std::min(input.find('\0'), input.size());
  const std::string_view json = input.substr(0, zero), text = input.substr(std::min(zero + 1, input.size()));
  const Tokenizer tokenizer = Tokenizer::parse(json, "input");

  std::vector<TokenId> ids;
  const bool encodes = succeeds([&] { ids = tokenizer.encode(text); });
  for (const size_t piece : {size_t{1}, size_t{3}, size_t{64}}) {
    std::vector<TokenId> streamed;
    const bool streams = encode_in_pieces(tokenizer, text, piece, streamed);
    expect(streams == encodes, "a text encodes in pieces if and only if it encodes at once");
    expect(!encodes || streamed == ids, "encoding in pieces gives the same ids");
  }
  if (!encodes) return;

  for (const TokenId id : ids) expect(id >= 0 && id < tokenizer.vocab_size(), "ids are within the vocabulary");
  expect(is_utf8(tokenizer.decode(ids, false)), "decoded text is valid UTF-8");
  StreamDecoder decoder(tokenizer, {"stop"});
  for (const TokenId id : ids) expect(is_utf8(decoder.push(id)), "streamed text is valid UTF-8");
  expect(is_utf8(decoder.finish()), "the streamed rest is valid UTF-8");
}

}  // namespace
}  // namespace elapid

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  elapid::succeeds([&] { elapid::run({reinterpret_cast<const char*>(data), size}); });
  return 0;
}
