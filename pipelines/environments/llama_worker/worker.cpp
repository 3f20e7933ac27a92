// The other end of `pipelines.runtimes.llama_cpp`: one GGUF in llama.cpp, asked through pipes.
//
// Reads requests as JSON lines from standard input and answers each with one line on standard output:
// {"result": ...}, or {"error": ..., "trace": ""} and ends. Ends, too, when its input does.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "llama.h"
#include "nlohmann/json.hpp"

using json = nlohmann::json;
using Tokens = std::vector<llama_token>;

namespace {

constexpr int CELLS = 1024;     // of the key-value cache, which all sequences of a decode share
constexpr int SEQUENCES = 64;   // in one decode, at most
constexpr int STEP = 512;       // tokens that pass through the model at a time

// A token to read: which sequences it belongs to, and what should follow it in each continuation that asks.
struct Cell {
    llama_token token;
    llama_pos position;
    int first, last;                                // sequences [first, last)
    std::vector<std::pair<json *, llama_token>> follow;  // where the score of a following token goes
};

// A prefix and the continuations to score after it.
struct Group {
    Tokens prefix;
    std::vector<Tokens> continuations;
    json scores;

    int size() const {
        size_t count = prefix.size();
        for (const auto & continuation : continuations) count += continuation.size() - 1;
        return static_cast<int>(count);
    }
};

class Model {
  public:
    json load(const json & request) {
        llama_model_params settings = llama_model_default_params();
        settings.n_gpu_layers = request.at("gpu_layers");
        threads = request.at("threads");
        model.reset(llama_model_load_from_file(request.at("file").get<std::string>().c_str(), settings));
        if (!model) throw std::runtime_error("llama.cpp does not load this file");
        vocabulary = llama_model_get_vocab(model.get());
        return {
            {"context", llama_model_n_ctx_train(model.get())},
            {"bos", llama_vocab_bos(vocabulary)},
            {"eos", llama_vocab_eos(vocabulary)},
            {"bos_text", text(llama_vocab_bos(vocabulary))},
            {"eos_text", text(llama_vocab_eos(vocabulary))},
        };
    }

    json tokenize(const json & request) {
        json answer = json::array();
        for (const auto & item : request.at("texts")) {
            const std::string text = item;
            Tokens tokens(text.size() + 8);
            const int count = llama_tokenize(vocabulary, text.data(), static_cast<int>(text.size()), tokens.data(),
                                             static_cast<int>(tokens.size()), request.at("special"), true);
            if (count < 0) throw std::runtime_error("llama.cpp does not tokenize this text");
            tokens.resize(count);
            answer.push_back(tokens);
        }
        return answer;
    }

    // For each group, for each continuation, for each of its tokens: log-probability in nats, and whether it was the
    // likeliest. A prefix is read once for all continuations.
    json score(const json & request) {
        std::vector<Group> groups;
        for (const auto & asked : request.at("groups")) {
            Group group{asked.at("prefix"), asked.at("continuations"), json::array()};
            for (const auto & continuation : group.continuations) {
                group.scores.push_back(json::array());
                if (continuation.empty() || group.prefix.empty()) throw std::runtime_error("nothing to score");
            }
            groups.push_back(std::move(group));
        }
        for (size_t first = 0; first < groups.size();) {  // as many groups at a time as the cache takes
            size_t last = first, sequences = 0;
            int size = 0;
            while (last < groups.size() && (last == first || (size + groups[last].size() <= CELLS &&
                                            sequences + groups[last].continuations.size() <= SEQUENCES))) {
                size += groups[last].size();
                sequences += groups[last++].continuations.size();
            }
            if (sequences > SEQUENCES) throw std::runtime_error("a group has too many continuations");
            fit(size);
            read(cells(groups, first, last));
            first = last;
        }
        json answer = json::array();
        for (auto & group : groups) answer.push_back(std::move(group.scores));
        return answer;
    }

    // The text that follows each prompt, greedily, until an end token, a stop string or `max_tokens`.
    json generate(const json & request) {
        const std::vector<Tokens> prompts = request.at("prompts");
        const int max_tokens = request.at("max_tokens");
        json answer = json::array();
        for (size_t first = 0; first < prompts.size();) {
            size_t last = first;
            int size = 0;
            while (last < prompts.size() && last - first < SEQUENCES &&
                   (last == first || size + static_cast<int>(prompts[last].size()) + max_tokens <= CELLS)) {
                size += static_cast<int>(prompts[last++].size()) + max_tokens;
            }
            fit(size);
            for (auto & text : continued(prompts, first, last, max_tokens, request.at("stop"))) answer.push_back(text);
            first = last;
        }
        return answer;
    }

  private:
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model{nullptr, llama_model_free};
    std::unique_ptr<llama_context, decltype(&llama_free)> context{nullptr, llama_free};
    const llama_vocab * vocabulary = nullptr;
    int threads = 1, room = 0;

    std::string text(llama_token token) const {
        return token == LLAMA_TOKEN_NULL ? "" : llama_vocab_get_text(vocabulary, token);
    }

    // An empty cache with room for `size` tokens.
    void fit(int size) {
        if (size > room) {
            context.reset();
            room = std::max(CELLS, (size + 255) / 256 * 256);
            llama_context_params settings = llama_context_default_params();
            settings.n_ctx = room;
            settings.n_batch = settings.n_ubatch = STEP;
            settings.n_seq_max = SEQUENCES;
            settings.n_threads = settings.n_threads_batch = threads;
            settings.kv_unified = true;  // a token of a prefix belongs to all sequences that begin with it
            settings.swa_full = true;
            settings.no_perf = true;
            context.reset(llama_init_from_model(model.get(), settings));
            if (!context) throw std::runtime_error("llama.cpp makes no context of " + std::to_string(room) + " tokens");
        }
        llama_memory_clear(llama_get_memory(context.get()), true);
    }

    static std::vector<Cell> cells(std::vector<Group> & groups, size_t first, size_t last) {
        std::vector<Cell> all;
        int sequence = 0;
        for (size_t number = first; number < last; number++) {
            Group & group = groups[number];
            const int everyone = sequence + static_cast<int>(group.continuations.size());
            for (size_t place = 0; place < group.prefix.size(); place++) {
                all.push_back({group.prefix[place], static_cast<llama_pos>(place), sequence, everyone, {}});
            }
            const size_t before = all.size() - 1;
            for (size_t which = 0; which < group.continuations.size(); which++, sequence++) {
                const Tokens & continuation = group.continuations[which];
                size_t row = before;
                for (size_t place = 0; place < continuation.size(); place++) {
                    all[row].follow.push_back({&group.scores[which], continuation[place]});
                    if (place + 1 == continuation.size()) break;
                    const auto position = static_cast<llama_pos>(group.prefix.size() + place);
                    all.push_back({continuation[place], position, sequence, sequence + 1, {}});
                    row = all.size() - 1;
                }
            }
        }
        return all;
    }

    // Read all cells, and score what should follow those that are asked about.
    void read(const std::vector<Cell> & all) {
        for (size_t first = 0; first < all.size(); first += STEP) {
            const size_t last = std::min(all.size(), first + STEP);
            decode(all, first, last);
            for (size_t place = first; place < last; place++) {
                if (!all[place].follow.empty()) write_scores(all[place], static_cast<int>(place - first));
            }
        }
    }

    void decode(const std::vector<Cell> & all, size_t first, size_t last) {
        llama_batch batch = llama_batch_init(STEP, 0, SEQUENCES);
        for (size_t place = first; place < last; place++) {
            const Cell & cell = all[place];
            const int number = batch.n_tokens++;
            batch.token[number] = cell.token;
            batch.pos[number] = cell.position;
            batch.n_seq_id[number] = cell.last - cell.first;
            for (int member = cell.first; member < cell.last; member++) {
                batch.seq_id[number][member - cell.first] = member;
            }
            batch.logits[number] = !cell.follow.empty();
        }
        const int code = llama_decode(context.get(), batch);
        llama_batch_free(batch);
        if (code != 0) throw std::runtime_error("llama_decode returned " + std::to_string(code));
    }

    void write_scores(const Cell & cell, int row) {
        const float * logits = llama_get_logits_ith(context.get(), row);
        const int count = llama_vocab_n_tokens(vocabulary);
        const float top = *std::max_element(logits, logits + count);
        double sum = 0;
        for (int token = 0; token < count; token++) sum += std::exp(logits[token] - top);
        for (const auto & [scores, token] : cell.follow) {
            scores->push_back({static_cast<double>(logits[token]) - top - std::log(sum), logits[token] == top});
        }
    }

    std::vector<std::string> continued(const std::vector<Tokens> & prompts, size_t first, size_t last, int max_tokens,
                                       const std::vector<std::string> & stop) {
        const size_t count = last - first;
        std::vector<Tokens> written(count);
        std::vector<bool> done(count, max_tokens == 0);
        std::vector<Cell> next;
        json unused;
        for (size_t which = 0; which < count; which++) {
            const Tokens & prompt = prompts[first + which];
            const int sequence = static_cast<int>(which);
            for (size_t place = 0; place < prompt.size(); place++) {
                next.push_back({prompt[place], static_cast<llama_pos>(place), sequence, sequence + 1, {}});
            }
            next.back().follow.push_back({&unused, 0});
        }
        while (!next.empty()) {
            std::vector<Cell> following;
            for (size_t start = 0; start < next.size(); start += STEP) {
                const size_t end = std::min(next.size(), start + STEP);
                decode(next, start, end);
                for (size_t place = start; place < end; place++) {
                    const Cell & cell = next[place];
                    if (cell.follow.empty() || done[cell.first]) continue;
                    const llama_token token = likeliest(static_cast<int>(place - start));
                    Tokens & text = written[cell.first];
                    if (llama_vocab_is_eog(vocabulary, token)) {
                        done[cell.first] = true;
                        continue;
                    }
                    text.push_back(token);
                    done[cell.first] = static_cast<int>(text.size()) == max_tokens || stops(detokenize(text), stop);
                    if (done[cell.first]) continue;
                    following.push_back({token, cell.position + 1, cell.first, cell.last, {{&unused, 0}}});
                }
            }
            next = std::move(following);
        }
        std::vector<std::string> texts;
        for (const auto & tokens : written) texts.push_back(detokenize(tokens));
        return texts;
    }

    llama_token likeliest(int row) {
        const float * logits = llama_get_logits_ith(context.get(), row);
        const int count = llama_vocab_n_tokens(vocabulary);
        return static_cast<llama_token>(std::max_element(logits, logits + count) - logits);
    }

    static bool stops(const std::string & text, const std::vector<std::string> & stop) {
        return std::any_of(stop.begin(), stop.end(),
                           [&](const std::string & end) { return text.find(end) != std::string::npos; });
    }

    std::string detokenize(const Tokens & tokens) const {
        std::string text(tokens.size() * 16 + 16, '\0');
        for (;;) {
            const int size = llama_detokenize(vocabulary, tokens.data(), static_cast<int>(tokens.size()), text.data(),
                                              static_cast<int>(text.size()), false, false);
            text.resize(std::abs(size));
            if (size >= 0) return text;
        }
    }
};

json answer(Model & model, const json & request) {
    const std::string command = request.at("command");
    if (command == "load") return model.load(request);
    if (command == "tokenize") return model.tokenize(request);
    if (command == "score") return model.score(request);
    if (command == "generate") return model.generate(request);
    throw std::runtime_error("unknown command " + command);
}

void log_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

}  // namespace

int main() {
    llama_log_set(log_errors, nullptr);
    llama_backend_init();
    Model model;
    for (std::string line; std::getline(std::cin, line);) {
        json reply;
        try {
            reply = {{"result", answer(model, json::parse(line))}};
        } catch (const std::exception & error) {
            reply = {{"error", error.what()}, {"trace", ""}};
        }
        std::cout << reply.dump(-1, ' ', true, json::error_handler_t::replace) << std::endl;
        if (reply.contains("error")) return 1;
    }
    return 0;
}
