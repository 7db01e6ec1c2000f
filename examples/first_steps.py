"""Blocking code: a client with a cluster of its own, futures as arguments of other tasks, results as they come."""

from trio_dask import Client, as_completed


def square(x: int) -> int:
    return x * x


# No `if __name__ == "__main__"` is needed: workers are fresh processes that never run this file.
with Client(n_workers=2, threads_per_worker=1) as client:
    squares = client.map(square, range(10))
    total = client.submit(sum, squares)
    print("sum of squares:", total.result())

    for future in as_completed(squares[:3]):
        print("done:", future.result())

    print("all:", client.gather(squares))
