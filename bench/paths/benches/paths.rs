//! Times of the paths, per packet. On a noisy machine believe the instruction counts instead.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vsock_paths::{ALL, PACKETS};

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packet");
    group.throughput(Throughput::Elements(PACKETS as u64));
    for (name, make) in ALL {
        let mut path = make();
        group.bench_function(name, |bencher| bencher.iter(|| path.step()));
    }
    group.finish();
}

criterion_group!(benches, paths);
criterion_main!(benches);
