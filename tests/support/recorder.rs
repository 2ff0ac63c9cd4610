//! A server that only listens: it keeps what it is told, and answers as it was told to.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
};

/// A server that keeps every request's head and body, and answers with `status`.
pub fn recorder(status: &'static str) -> (SocketAddr, Receiver<(String, String)>) {
    recorder_that(move |_| Some(status))
}

/// The same; what the n-th request is answered, counted from 0, or that it never is.
pub fn recorder_that(
    answers: impl Fn(usize) -> Option<&'static str> + Send + Sync + 'static,
) -> (SocketAddr, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    let (answers, count) = (Arc::new(answers), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let (tell, answers, count) = (tell.clone(), Arc::clone(&answers), Arc::clone(&count));
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some(request) = read(&mut reader) {
                    let status = answers(count.fetch_add(1, Ordering::SeqCst));
                    if tell.send(request).is_err() {
                        return;
                    }
                    if let Some(status) = status {
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
                        let _ = reader.get_mut().write_all(answer.as_bytes());
                    }
                }
            });
        }
    });
    (address, told)
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}
