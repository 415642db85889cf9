// A few threads that live as long as the process and run one loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace ernie_local {

class ThreadPool {
public:
    ~ThreadPool();

    // Brings the pool to `num_threads`, the caller's own among them. Not while a loop runs.
    void resize(int num_threads);
    int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(i) for every i in [0, count), from all threads, and returns when all are done. Tasks throw nothing.
    template <class Task>
    void run(int count, const Task& task) {
        if (workers_.empty() || count <= 1) {
            for (int i = 0; i < count; ++i) task(i);
            return;
        }
        start(count, [](const void* context, int i) { (*static_cast<const Task*>(context))(i); }, &task);
    }

private:
    using Function = void (*)(const void* context, int index);

    void start(int count, Function function, const void* context);
    void work();
    void serve(unsigned seen);
    void stop();

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> round_{0};  // grows with every loop; a worker that sees it change begins
    std::atomic<int> next_{0};
    std::atomic<int> busy_{0};        // workers that have not left the current loop
    std::atomic<bool> stopping_{false};
    int count_ = 0;
    Function function_ = nullptr;
    const void* context_ = nullptr;
};

}  // namespace ernie_local
