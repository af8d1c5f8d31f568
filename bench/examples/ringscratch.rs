fn main() {
    let d = std::env::args().nth(1).unwrap();
    let mut o = lockstep_bench::ring::RingOptions::default();
    if let Some(r) = std::env::args().nth(2) { o.rounds = r.parse().unwrap(); }
    if let Some(r) = std::env::args().nth(3) { o.capacity = r.parse().unwrap(); }
    let mut report = lockstep_bench::report::Report::create(d.as_ref(), "ring", "x").unwrap();
    let r = lockstep_bench::ring::run(&o, &mut report).unwrap();
    for s in &r.sizes {
        println!("{} B  handoff {:.0} ns  tput factor {:.2} lat factor {:.2}", s.entry_bytes, s.handoff_ns, s.throughput_factor(), s.handoff_factor());
        for c in &s.contenders { println!("   {:20} {:8.2} M/s {:7.2} GB/s  {:7.0} ns", c.name, c.entries_per_second/1e6, c.entries_per_second*s.entry_bytes as f64/1e9, c.one_way_ns); }
    }
    for p in report.finish().unwrap().promises { println!("{} {:.2} {}", p.name, p.found, p.kept); }
}
