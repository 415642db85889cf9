#include "thread_pool.hpp"

#include <chrono>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace ernie_local {
namespace {

// In decode the next loop comes within microseconds; waking a sleeping thread takes about fifty.
constexpr auto kSpinTime = std::chrono::microseconds(200);

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

template <class Condition>
bool spin_until(const Condition& condition) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    do {
        for (int i = 0; i < 64; ++i) {
            if (condition()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return condition();
}

}  // namespace

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
}

void ThreadPool::resize(int num_threads) {
    if (num_threads == this->num_threads()) return;
    stop();
    const unsigned seen = round_.load();
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, seen] { serve(seen); });
}

void ThreadPool::start(int count, Function function, const void* context) {
    count_ = count;
    function_ = function;
    context_ = context;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work();
    const auto done = [this] { return busy_.load(std::memory_order_acquire) == 0; };
    while (!spin_until(done)) std::this_thread::yield();
}

void ThreadPool::work() {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) function_(context_, i);
}

void ThreadPool::serve(unsigned seen) {
    for (;;) {
        const auto called = [this, seen] { return round_.load(std::memory_order_acquire) != seen; };
        if (!spin_until(called)) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, called);
        }
        ++seen;
        if (stopping_) return;
        work();
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace ernie_local
