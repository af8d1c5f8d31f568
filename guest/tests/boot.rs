//! The tenant booted as it ships, by QEMU, and a memcached client that knows nothing of it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use futures::io::{AsyncRead, AsyncWrite};
use lockstep_guest::{CONTROL_PORT, ECHO_PORT, KV_PORT, TenantArguments, VALUE_MOST, bare_tenant};

const QEMU: &str = "qemu-system-x86_64";
/// Generous: the machine may be busy. Nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

struct Machine {
    child: Child,
    console: mpsc::Receiver<String>,
    ports: [u16; 3],
    _image: tempfile::NamedTempFile,
}

fn find_qemu() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(QEMU))
        .find(|file| file.is_file())
}

/// A port of the loopback interface that nobody uses now.
fn free_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Machine {
    /// Boots the tenant. `None`: `test` cannot run here, and that has been reported.
    fn boot(test: &str) -> Option<Self> {
        let Some(qemu) = find_qemu() else {
            lockstep_perf::not_run::report(
                test,
                "qemu-system-x86_64 is missing: install qemu-system-x86",
            );
            return None;
        };
        let image = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(image.path(), bare_tenant()).unwrap();
        let mut arguments = TenantArguments::new(Ipv4Addr::new(10, 0, 2, 15), 24);
        arguments.control = true;
        let ports = [free_port(), free_port(), free_port()];
        let forwards: String = ports
            .iter()
            .zip([ECHO_PORT, CONTROL_PORT, KV_PORT])
            .map(|(host, guest)| format!(",hostfwd=udp:127.0.0.1:{host}-:{guest}"))
            .collect();
        let mut child = Command::new(qemu)
            // As on our machine: no local APIC, two 8259s, and virtio-mmio found by the command line.
            .args([
                "-M",
                "microvm,x-option-roms=off,rtc=off,acpi=off,auto-kernel-cmdline=on",
            ])
            .args(["-accel", "tcg", "-cpu", "qemu64,-apic", "-m", "64"])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            .args([
                "-serial",
                "stdio",
                "-global",
                "virtio-mmio.force-legacy=false",
            ])
            .args(["-netdev", &format!("user,id=net{forwards}")])
            .args(["-device", "virtio-net-device,netdev=net"])
            .arg("-kernel")
            .arg(image.path())
            .args(["-append", &arguments.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (lines, console) = mpsc::channel();
        thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| lines.send(line))
        });
        let machine = Self {
            child,
            console,
            ports,
            _image: image,
        };
        let banner = machine
            .console
            .recv_timeout(PATIENCE)
            .expect("the tenant says that it is ready");
        assert_eq!(
            banner,
            format!("tenant {} 10.0.2.15 ready", env!("CARGO_PKG_VERSION"))
        );
        Some(machine)
    }

    fn client(&self) -> memcache_async::ascii::Protocol<Datagrams> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket
            .connect((Ipv4Addr::LOCALHOST, self.ports[2]))
            .unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        memcache_async::ascii::Protocol::new(Datagrams {
            socket,
            id: 0,
            request: Vec::new(),
            answer: VecDeque::new(),
        })
    }

    /// Sends a datagram and returns the answer.
    fn ask(&self, service: usize, payload: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
            .send_to(payload, (Ipv4Addr::LOCALHOST, self.ports[service]))
            .unwrap();
        let mut answer = vec![0; 2000];
        let length = socket.recv(&mut answer).unwrap();
        answer.truncate(length);
        answer
    }

    /// Processor time that the machine has used.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Fields 14 and 15, counted from behind the name, in ticks of 10 ms (USER_HZ).
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stream over memcached's UDP frames, for a client that wants a stream: what it writes up to a flush is
/// one request, what it reads is the answer's datagrams put in order.
struct Datagrams {
    socket: UdpSocket,
    id: u16,
    request: Vec<u8>,
    answer: VecDeque<u8>,
}

impl Datagrams {
    fn receive(&mut self) -> io::Result<()> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut missing = 1;
        while missing > 0 {
            // The buffer that memcached's documentation has clients use.
            let mut datagram = vec![0; 1400];
            let length = self.socket.recv(&mut datagram)?;
            datagram.truncate(length);
            let word = |n: usize| u16::from_be_bytes([datagram[2 * n], datagram[2 * n + 1]]);
            if word(0) != self.id {
                continue;
            }
            let (sequence, total) = (usize::from(word(1)), usize::from(word(2)));
            if parts.is_empty() {
                parts.resize(total, Vec::new());
                missing = total;
            }
            parts[sequence] = datagram.split_off(8);
            missing -= 1;
        }
        self.answer.extend(parts.into_iter().flatten());
        Ok(())
    }
}

impl AsyncWrite for Datagrams {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.request.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.id = self.id.wrapping_add(1);
        let id = self.id.to_be_bytes();
        let mut datagram = vec![id[0], id[1], 0, 0, 0, 1, 0, 0];
        datagram.append(&mut self.request);
        Poll::Ready(self.socket.send(&datagram).map(drop))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Datagrams {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.answer.is_empty() {
            self.receive()?;
        }
        Poll::Ready(self.answer.read(buffer))
    }
}

#[test]
fn a_real_memcached_client_is_served() {
    let Some(machine) = Machine::boot("a_real_memcached_client_is_served") else {
        return;
    };
    let mut client = machine.client();
    block_on(async {
        assert_eq!(client.version().await.unwrap(), env!("CARGO_PKG_VERSION"));
        let absent = client.get("absent").await.unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        client.set("greeting", b"hello", 0).await.unwrap();
        assert_eq!(client.get("greeting").await.unwrap(), b"hello");
        let present = client.add("greeting", b"again", 0).await.unwrap_err();
        assert_eq!(present.kind(), io::ErrorKind::AlreadyExists);
        client.delete("greeting").await.unwrap();
        client.add("greeting", b"again", 0).await.unwrap();

        client.set("count", b"40", 0).await.unwrap();
        assert_eq!(client.increment("count", 2).await.unwrap(), 42);
        assert_eq!(client.decrement("count", 100).await.unwrap(), 0);

        let large = vec![b'x'; VALUE_MOST];
        let keys: Vec<String> = (0..8).map(|n| format!("large{n}")).collect();
        for key in &keys {
            client.set(key, &large, 0).await.unwrap();
        }
        let items = client.get_multi(&keys).await.unwrap();
        assert_eq!(items.len(), 8, "eight values, in nine datagrams");
        assert!(items.values().all(|value| *value == large));

        let (value, cas) = client.gets_cas("large3").await.unwrap();
        assert_eq!(value, large);
        assert!(client.cas("large3", b"small", cas, 0).await.unwrap());
        assert!(!client.cas("large3", b"smaller", cas, 0).await.unwrap());

        for n in 0..1000 {
            client
                .add(format!("key{n}"), n.to_string().as_bytes(), 0)
                .await
                .unwrap();
        }
        for n in 0..1000 {
            assert_eq!(
                client.get(format!("key{n}")).await.unwrap(),
                n.to_string().as_bytes()
            );
        }
    });
}

#[test]
fn an_idle_tenant_uses_no_processor_and_wakes_for_each_datagram() {
    let name = "an_idle_tenant_uses_no_processor_and_wakes_for_each_datagram";
    let Some(machine) = Machine::boot(name) else {
        return;
    };
    // Every length that the checksum's arithmetic tells apart: the other side verifies it.
    for size in (1..=140_usize).chain(1455..=1464) {
        let payload: Vec<u8> = (0..size).map(|i| (i * 37 + size) as u8).collect();
        assert_eq!(machine.ask(0, &payload), payload);
        if size % 16 == 0 {
            // Time to fall asleep in.
            thread::sleep(Duration::from_millis(5));
        }
    }
    let (before, since) = (machine.processor_time(), Instant::now());
    thread::sleep(Duration::from_millis(500));
    let used = machine.processor_time() - before;
    assert!(
        used < since.elapsed() / 4,
        "used {used:?} of {:?} doing nothing",
        since.elapsed()
    );
}

#[test]
fn control_burns_and_powers_off() {
    let Some(mut machine) = Machine::boot("control_burns_and_powers_off") else {
        return;
    };
    let answer = String::from_utf8(machine.ask(1, b"burn 5000000")).unwrap();
    assert!(answer.starts_with("burned 5000000 "), "{answer}");
    assert_eq!(machine.ask(1, b"poweroff"), b"ok\n");
    let end = Instant::now() + PATIENCE;
    while machine.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "still on");
        thread::sleep(Duration::from_millis(10));
    }
    // It went without a word: no exception was reported.
    assert_eq!(
        machine.console.recv_timeout(PATIENCE),
        Err(mpsc::RecvTimeoutError::Disconnected)
    );
}
