#include "gateway/http/openai_request.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

HttpCompletion Parsed(absl::string_view body, bool chat = false) {
  absl::StatusOr<HttpCompletion> parsed = ParseCompletion(body, chat);
  EXPECT_TRUE(parsed.ok()) << parsed.status() << " of " << body;
  return parsed.ok() ? *std::move(parsed) : HttpCompletion();
}

// The field that the refusal names.
std::string Refused(absl::string_view body, bool chat = false) {
  absl::StatusOr<HttpCompletion> parsed = ParseCompletion(body, chat);
  if (parsed.ok()) return "taken";
  EXPECT_TRUE(absl::IsInvalidArgument(parsed.status()));
  return FieldOfMessage(parsed.status().message());
}

TEST(ParseCompletion, TakesAPromptInItsFourForms) {
  EXPECT_EQ(Parsed(R"({"prompt":"a"})").prompts[0].text, "a");
  const HttpCompletion strings = Parsed(R"({"prompt":["a","b"]})");
  ASSERT_EQ(strings.prompts.size(), 2u);
  EXPECT_EQ(strings.prompts[1].text, "b");
  const HttpCompletion ids = Parsed(R"({"prompt":[1,2,3]})");
  ASSERT_EQ(ids.prompts.size(), 1u);
  EXPECT_EQ(ids.prompts[0].ids, (std::vector<int32_t>{1, 2, 3}));
  const HttpCompletion lists = Parsed(R"({"prompt":[[1,2],[]]})");
  ASSERT_EQ(lists.prompts.size(), 2u);
  EXPECT_EQ(lists.prompts[0].ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(lists.prompts[1].ids, (std::vector<int32_t>{}));
  for (const char* bad : {"{}", R"({"prompt":null})", R"({"prompt":[]})", R"({"prompt":7})",
                          R"({"prompt":["a",1]})", R"({"prompt":[[1],"a"]})"}) {
    EXPECT_EQ(Refused(bad), "prompt") << bad;
  }
  EXPECT_EQ(Refused(R"({"prompt":[1,"a"]})"), "prompt[1]");
  EXPECT_EQ(Refused(R"({"prompt":[[1],[1,-2]]})"), "prompt[1][1]");
  EXPECT_EQ(Refused(R"({"prompt":[1.5]})"), "prompt[0]");
}

TEST(ParseCompletion, FillsEveryFieldOfTheRequest) {
  const HttpCompletion parsed =
      Parsed(R"({"model":"m","prompt":"a","max_tokens":7,"n":2,"best_of":2,
    "echo":true,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true,
    "per_block":true,"include_worker":true,"include_event_id":true,"stream_interval":16},
    "logprobs":3,"stop":["x","y"],"stop_token_ids":[4,5],
    "ignore_eos":true,"min_tokens":2,"seed":-2,"temperature":0.5,"top_p":0.25,"top_k":-1,
    "min_p":0.125,"repetition_penalty":1.5,"presence_penalty":0.75,"frequency_penalty":-0.75,
    "logit_bias":{"12":-100,"13":1.5},"alignment":"start","priority":"batch",
    "return_token_ids":true,"user":"somebody","cache_salt":"ours"})");
  const v1::GenerateRequest& request = parsed.request;
  EXPECT_EQ(request.model(), "m");
  EXPECT_EQ(parsed.max_tokens, 7);
  EXPECT_EQ(request.n(), 2);
  EXPECT_TRUE(parsed.echo && parsed.stream && parsed.include_usage && parsed.continuous_usage &&
              parsed.per_block && parsed.include_worker && parsed.include_event_id &&
              parsed.return_token_ids);
  EXPECT_EQ(request.stream_interval(), 16);
  EXPECT_EQ(request.logprobs(), 3);
  EXPECT_EQ(request.stop().strings(1), "y");
  EXPECT_EQ(request.stop().token_ids(0), 4);
  EXPECT_TRUE(request.stop().ignore_eos());
  EXPECT_EQ(request.stop().min_tokens(), 2);
  EXPECT_EQ(request.seed(), ~uint64_t{1});
  EXPECT_EQ(request.sampling().temperature(), 0.5f);
  EXPECT_EQ(request.sampling().top_p(), 0.25f);
  EXPECT_EQ(request.sampling().top_k(), 0);
  EXPECT_EQ(request.sampling().min_p(), 0.125f);
  EXPECT_EQ(request.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(request.sampling().presence_penalty(), 0.75f);
  EXPECT_EQ(request.sampling().frequency_penalty(), -0.75f);
  ASSERT_EQ(request.sampling().logit_bias_size(), 2);
  EXPECT_EQ(request.sampling().logit_bias(0).token(), 12);
  EXPECT_EQ(request.sampling().logit_bias(0).bias(), -100.0f);
  EXPECT_EQ(request.alignment(), v1::ALIGNMENT_START);
  EXPECT_EQ(request.priority(), v1::PRIORITY_BATCH);
  EXPECT_EQ(request.cache_salt(), "ours");
  EXPECT_TRUE(parsed.unknown_fields.empty());
}

TEST(ParseCompletion, NullIsAbsent) {
  const HttpCompletion parsed = Parsed(
      R"({"prompt":"a","suffix":null,"max_tokens":null,"n":null,"stop":null,"logprobs":null,
          "seed":null,"temperature":null,"stream_options":null,"tools":null,"logit_bias":null,
          "cache_salt":null})");
  EXPECT_FALSE(parsed.max_tokens.has_value());
  EXPECT_FALSE(parsed.request.has_n() || parsed.request.has_logprobs() ||
               parsed.request.has_seed() || parsed.request.has_cache_salt() ||
               parsed.request.sampling().has_temperature());
}

TEST(ParseCompletion, NamesTheFieldThatDoesNotFit) {
  const auto refused = [](absl::string_view field) {
    return Refused(absl::StrCat(R"({"prompt":"a",)", field, "}"));
  };
  EXPECT_EQ(refused(R"("suffix":"b")"), "suffix");
  for (const char* field : {"tools", "tool_choice", "parallel_tool_calls", "functions",
                            "function_call", "audio", "modalities", "response_format", "suffix"}) {
    for (const char* value : {"[7]", "{}", "\"required\"", "7"}) {
      EXPECT_EQ(refused(absl::StrCat("\"", field, "\":", value)), field) << value;
    }
  }
  for (const char* field :
       {"structured_outputs", "guided_json",     "guided_choice", "json_schema",
        "use_beam_search",    "prompt_embeds",   "truncate",      "samplers",
        "stop_strings",       "stop_regex",      "lora",          "lora_path",
        "adapter_id",         "truncation_side", "do_sample",     "watermark",
        "structural_tag",     "prompt_logprobs", "bad_words",     "banned_strings"}) {
    for (const char* value : {"[7]", "{\"a\":1}", "\"required\"", "7"}) {
      EXPECT_EQ(refused(absl::StrCat("\"", field, "\":", value)), field) << value;
    }
  }
  EXPECT_EQ(refused(R"("allowed_token_ids":[])"), "allowed_token_ids");
  EXPECT_EQ(refused(R"("skip_special_tokens":false)"), "skip_special_tokens");
  EXPECT_EQ(refused(R"("length_penalty":1.5)"), "length_penalty");
  EXPECT_EQ(refused(R"("mirostat":true)"), "mirostat");
  for (const char* field : {"typ_p", "tfs_z", "top_n_sigma", "top_a", "smoothing_factor",
                            "num_beams", "no_repeat_ngram_size", "n_probs", "repeat_last_n"}) {
    EXPECT_EQ(refused(absl::StrCat("\"", field, "\":0.5")), field);
  }
  EXPECT_EQ(refused(R"("repeat_penalty":1.1,"repeat_last_n":64)"), "repeat_last_n");
  EXPECT_EQ(refused(R"("max_completion_tokens":"7")"), "max_completion_tokens");
  EXPECT_EQ(refused(R"("max_completion_tokens":7,"max_tokens":8)"), "max_completion_tokens");
  EXPECT_EQ(refused(R"("n_predict":-1)"), "n_predict");
  EXPECT_EQ(refused(R"("truncate_prompt_tokens":0)"), "truncate_prompt_tokens");
  EXPECT_EQ(refused(R"("response_format":{"type":"json_object"})"), "response_format");
  EXPECT_EQ(refused(R"("response_format":{"type":"text","schema":{}})"), "response_format");
  EXPECT_EQ(refused(R"("modalities":["text","audio"])"), "modalities");
  EXPECT_EQ(refused(R"("modalities":[])"), "modalities");
  EXPECT_EQ(refused(R"("tool_choice":"auto","tools":[{"type":"function"}])"), "tools");
  EXPECT_EQ(refused(R"("function_call":"auto")"), "function_call");
  EXPECT_EQ(refused(R"("max_tokens":"7")"), "max_tokens");
  EXPECT_EQ(refused(R"("max_tokens":1.5)"), "max_tokens");
  EXPECT_EQ(refused(R"("max_tokens":0)"), "max_tokens") << "without echo";
  EXPECT_EQ(refused(R"("max_tokens":99999999999)"), "max_tokens");
  EXPECT_EQ(refused(R"("n":0)"), "n");
  EXPECT_EQ(refused(R"("n":2,"best_of":3)"), "best_of");
  EXPECT_EQ(refused(R"("stream":1)"), "stream");
  EXPECT_EQ(refused(R"("stream_options":{})"), "stream_options") << "without stream";
  EXPECT_EQ(refused(R"("stream":true,"stream_options":[])"), "stream_options");
  EXPECT_EQ(refused(R"("stream":true,"stream_options":{"include_usage":1})"),
            "stream_options.include_usage");
  EXPECT_EQ(refused(R"("stream":true,"stream_options":{"stream_interval":0})"),
            "stream_options.stream_interval");
  EXPECT_EQ(refused(R"("logprobs":true)"), "logprobs");
  EXPECT_EQ(refused(R"("stop":[1])"), "stop");
  EXPECT_EQ(refused(R"("temperature":"hot")"), "temperature");
  EXPECT_EQ(refused(R"("logit_bias":{"a":1})"), "logit_bias");
  EXPECT_EQ(refused(R"("logit_bias":{"12":5,"13":100.5})"), "logit_bias[\"13\"]");
  EXPECT_EQ(refused(R"("logit_bias":{"13":-1e300})"), "logit_bias[\"13\"]");
  EXPECT_EQ(refused(R"("alignment":"middle")"), "alignment");
  EXPECT_EQ(refused(R"("echo":true,"alignment":"end")"), "alignment");
  EXPECT_EQ(refused(R"("priority":1.5)"), "priority");
  EXPECT_EQ(refused(R"("priority":"urgent")"), "priority");
  EXPECT_EQ(refused(R"("cache_salt":7)"), "cache_salt");
  EXPECT_EQ(refused(R"("seed":1.5)"), "seed");
}

TEST(ParseCompletion, WhatIsNotServedMayBeSentWithTheValueThatAsksForNothing) {
  for (
      const char* fields :
      {R"("response_format":{"type":"text"})", R"("tools":[])", R"("tool_choice":"none")",
       R"("tool_choice":"auto","tools":[],"parallel_tool_calls":true)",
       R"("parallel_tool_calls":false)", R"("functions":[],"function_call":"none")",
       R"("suffix":"")", R"("modalities":["text"])",
       R"("guided_json":null,"structured_outputs":{},"grammar":"","regex":"","bad_words":[])",
       R"("use_beam_search":false,"length_penalty":1.0,"typical_p":1,"mirostat":0)",
       R"("add_special_tokens":false,"skip_special_tokens":true)",
       R"("top_n_sigma":-1,"typ_p":1.0,"tfs_z":1,"top_a":0,"num_beams":1,"n_probs":0)",
       R"("repeat_penalty":1.0,"repeat_last_n":64)",
       R"("banned_strings":[],"stop_strings":[],"lora_path":"","truncation_side":"left","thinking_token_budget":-1,"do_sample":true,"repetition_detection":{})",
       R"("include_stop_str_in_output":false,"spaces_between_special_tokens":true)"}) {
    const HttpCompletion parsed = Parsed(absl::StrCat(R"({"prompt":"a",)", fields, "}"));
    EXPECT_EQ(parsed.prompts.size(), 1u) << fields;
    EXPECT_TRUE(parsed.unknown_fields.empty()) << fields;
  }
}

TEST(ParseCompletion, TakesTheNamesThatOtherServersHave) {
  for (const char* field : {"max_completion_tokens", "n_predict", "max_new_tokens"}) {
    const HttpCompletion parsed = Parsed(absl::StrCat(R"({"prompt":"a",")", field, "\":7}"));
    EXPECT_EQ(parsed.max_tokens, 7) << field;
    EXPECT_TRUE(parsed.unknown_fields.empty()) << field;
    const absl::Status status =
        NamedAsGiven(absl::InvalidArgumentError("stop.max_tokens: too many"), parsed, 0, 1);
    EXPECT_EQ(status.message(), absl::StrCat(field, ": too many"));
  }
  EXPECT_EQ(Parsed(R"({"prompt":"a","max_completion_tokens":7,"max_tokens":7})").max_tokens, 7);
  const HttpCompletion others =
      Parsed(R"({"prompt":"a","repeat_penalty":1.5,"min_new_tokens":3,"n_predict":null})");
  EXPECT_EQ(others.request.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(others.request.stop().min_tokens(), 3);
  EXPECT_FALSE(others.max_tokens.has_value());
}

TEST(ParseCompletion, TakesWhatVllmsClientsSay) {
  const auto priority = [](int number) {
    return Parsed(absl::StrCat(R"({"prompt":"a","priority":)", number, "}")).request.priority();
  };
  EXPECT_EQ(priority(0), v1::PRIORITY_UNSPECIFIED);
  EXPECT_EQ(priority(3), v1::PRIORITY_BATCH);
  EXPECT_EQ(priority(-3), v1::PRIORITY_HIGH);
  EXPECT_FALSE(Parsed(R"({"prompt":"a","seed":-1})").request.has_seed());
  const HttpCompletion parsed = Parsed(
      R"({"prompt":"a","truncate_prompt_tokens":-1,"include_stop_str_in_output":true,
          "return_tokens_as_token_ids":true})");
  EXPECT_EQ(parsed.truncate_prompt_tokens, -1);
  EXPECT_TRUE(parsed.request.stop().include_string() && parsed.tokens_as_ids);
}

TEST(ParseCompletion, AChatEndsWhereItIsToldTo) {
  const auto chat = [](absl::string_view fields) {
    return absl::StrCat(R"({"messages":[{"role":"user","content":"a"}],)", fields, "}");
  };
  EXPECT_EQ(Parsed(chat(R"("top_logprobs":0)"), true).chat_end, ChatEnd::kAnswer);
  EXPECT_EQ(Parsed(chat(R"("add_generation_prompt":false)"), true).chat_end,
            ChatEnd::kAfterLastMessage);
  EXPECT_EQ(
      Parsed(chat(R"("add_generation_prompt":false,"continue_final_message":true)"), true).chat_end,
      ChatEnd::kWithinLastMessage);
  EXPECT_EQ(Refused(chat(R"("add_generation_prompt":true,"continue_final_message":true)"), true),
            "continue_final_message");
  EXPECT_EQ(ParseCompletion(chat(R"("max_tokens":0)"), true).status().message(),
            "max_tokens: must be at least 1");
  for (const char* field : {"echo", "chat_template", "chat_template_kwargs", "documents"}) {
    EXPECT_EQ(Refused(chat(absl::StrCat("\"", field, R"(":[1])")), true), field);
  }
  Parsed(chat(R"("echo":false,"chat_template_kwargs":{},"documents":[])"), true);
}

TEST(ParseCompletion, RefusesWhatIsNoJsonObject) {
  for (const char* body :
       {"", "{", "[]", "7", "{\"prompt\":\"\xff\"}", "{\"a\":1e999}", "{\"prompt\":\"\\ud800\"}"}) {
    EXPECT_EQ(Refused(body), "body") << body;
  }
  EXPECT_EQ(Refused(std::string(100'000, '[')), "body");
  EXPECT_EQ(Refused(absl::StrCat(R"({"prompt":"a"})", absl::string_view("\0", 1))), "body");
}

// What copies or compares such a value would need as many calls on the stack.
TEST(ParseCompletion, RefusesADeepBodyWhereverItIsDeep) {
  const auto nested = [](size_t levels) {
    return absl::StrCat(std::string(levels, '['), std::string(levels, ']'));
  };
  const std::string deep = nested(1'000'000);
  EXPECT_EQ(Refused(absl::StrCat(R"({"prompt":"a","x":)", deep, "}")), "body");
  EXPECT_EQ(Refused(absl::StrCat(R"({"prompt":"a","max_tokens":)", deep,
                                 R"(,"max_completion_tokens":)", deep, "}")),
            "body");
  EXPECT_EQ(Refused(absl::StrCat(R"({"messages":[{"role":"user","content":[{"type":)", deep,
                                 R"(,"text":"a"}]}]})"),
                    true),
            "body");
  Parsed(absl::StrCat(R"({"prompt":"a","x":)", nested(63), "}"));
  EXPECT_EQ(Refused(absl::StrCat(R"({"prompt":"a","x":)", nested(64), "}")), "body");
}

TEST(ParseCompletion, UnknownFieldsAreIgnoredAndTold) {
  const HttpCompletion parsed =
      Parsed(R"({"prompt":"a","stream":true,"store":true,"stream_options":{"x":1},"metadata":{}})");
  EXPECT_EQ(parsed.unknown_fields,
            (std::vector<std::string>{"stream_options.x", "metadata", "store"}));
}

TEST(ParseCompletion, EchoAndChatAlignAtTheStart) {
  EXPECT_EQ(Parsed(R"({"prompt":"a","echo":true,"max_tokens":0})").request.alignment(),
            v1::ALIGNMENT_START);
  const HttpCompletion chat = Parsed(
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},
          {"type":"text","text":"b"}]}],"logprobs":true,"top_logprobs":2,
          "max_completion_tokens":9})",
      true);
  EXPECT_EQ(chat.request.alignment(), v1::ALIGNMENT_START);
  ASSERT_EQ(chat.messages.size(), 1u);
  EXPECT_EQ(chat.messages[0].content, "ab");
  EXPECT_EQ(chat.request.logprobs(), 2);
  EXPECT_EQ(chat.max_tokens, 9);
}

// As clients write what another server has answered.
TEST(ParseCompletion, AnAssistantMayHaveSaidNothing) {
  const HttpCompletion chat = Parsed(
      R"({"messages":[{"role":"assistant","content":null,"tool_calls":null,"function_call":null,
                       "refusal":null},
          {"role":"assistant","tool_calls":[],"refusal":""},{"role":"user","content":"a"}]})",
      true);
  ASSERT_EQ(chat.messages.size(), 3u);
  EXPECT_EQ(chat.messages[0].content, "");
  EXPECT_EQ(chat.messages[1].content, "");
}

TEST(ParseCompletion, NamesTheMessageThatDoesNotFit) {
  EXPECT_EQ(Refused(R"({"messages":[]})", true), "messages");
  EXPECT_EQ(Refused(R"({"messages":[{"content":"a"}]})", true), "messages[0].role");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"user"}]})", true), "messages[0].content");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"user","content":null}]})", true),
            "messages[0].content");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"assistant","content":null,
                        "tool_calls":[{"id":"a"}]}]})",
                    true),
            "messages[0].tool_calls");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"assistant","content":null,"refusal":"No."}]})", true),
            "messages[0].refusal");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"assistant",
                        "content":[{"type":"refusal","refusal":"No."}]}]})",
                    true),
            "messages[0].content");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})", true),
            "messages[0].content");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"user","content":"a"}],"top_logprobs":2})", true),
            "top_logprobs");
}

TEST(NamedAsGiven, NamesThePromptOfAList) {
  const absl::Status too_long = absl::InvalidArgumentError("prompt.text: too long");
  HttpCompletion wanted;
  EXPECT_EQ(NamedAsGiven(too_long, wanted, 0, 1).message(), "prompt: too long");
  EXPECT_EQ(NamedAsGiven(too_long, wanted, 1, 2).message(), "prompt[1]: too long");
  EXPECT_EQ(NamedAsGiven(absl::InvalidArgumentError("n: x"), wanted, 1, 2).message(), "n: x");
  EXPECT_EQ(NamedAsGiven(absl::InvalidArgumentError("prompts_of_call: 2 requests"), wanted, 0, 2)
                .message(),
            "prompt: 2 requests");
  wanted.chat = true;
  absl::Status full = absl::ResourceExhaustedError("prompt.text: too long");
  full.SetPayload("type", absl::Cord("payload"));
  const absl::Status named = NamedAsGiven(full, wanted, 0, 1);
  EXPECT_EQ(named.message(), "messages: too long");
  EXPECT_EQ(named.code(), full.code());
  EXPECT_EQ(named.GetPayload("type"), full.GetPayload("type"));
}

TEST(WithHttpFieldName, TellsFieldsByTheNamesThatClientsUse) {
  EXPECT_EQ(WithHttpFieldName("stop.max_tokens: too many"), "max_tokens: too many");
  EXPECT_EQ(WithHttpFieldName("stop.strings[1]: x"), "stop[1]: x");
  EXPECT_EQ(WithHttpFieldName("sampling.top_p: x"), "top_p: x");
  EXPECT_EQ(WithHttpFieldName("prompt.tokens[3]: x"), "prompt[3]: x");
  EXPECT_EQ(WithHttpFieldName("sampling.logit_bias[3].token: token id 9 is given twice"),
            "logit_bias: token id 9 is given twice");
  EXPECT_EQ(WithHttpFieldName("n: x"), "n: x");
  EXPECT_EQ(FieldOfMessage("no field: here"), "");
}

}  // namespace
}  // namespace blockserve
