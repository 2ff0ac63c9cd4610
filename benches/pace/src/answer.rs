//! Where does an answer over HTTP/1.1 end?
//!
//! Only what the bench's upstream sends, by way of any proxy: a status and a length, in whatever pieces.

/// One answer, as far as it has come.
#[derive(Default)]
pub struct Answer {
    head: Vec<u8>,
    status: u16,
    /// Of the body; none while the head is not whole.
    left: Option<usize>,
}

impl Answer {
    /// Takes what has come; the status, when nothing is missing any more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<u16>, String> {
        let body = match self.left {
            Some(_) => bytes.len(),
            None => {
                self.head.extend_from_slice(bytes);
                let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                    return Ok(None);
                };
                let body = self.head.len() - end - 4;
                self.head.truncate(end);
                self.read_head()?;
                body
            }
        };
        let left = self
            .left
            .unwrap_or(0)
            .checked_sub(body)
            .ok_or("more came than was announced")?;
        self.left = Some(left);
        Ok((left == 0).then_some(self.status))
    }

    fn read_head(&mut self) -> Result<(), String> {
        let head = String::from_utf8_lossy(&self.head);
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|word| word.parse().ok());
        let length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse().ok());
        (self.status, self.left) = match (status, length) {
            (Some(status), Some(length)) => (status, Some(length)),
            _ => return Err(format!("an answer without a status or a length:\n{head}")),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\nServer: x\r\n\r\nhello";

    #[test]
    fn an_answer_ends_with_its_body_in_whatever_pieces_it_comes() {
        for first in 1..WHOLE.len() {
            let mut answer = Answer::default();
            assert_eq!(answer.feed(&WHOLE[..first]), Ok(None), "after {first} bytes");
            assert_eq!(answer.feed(&WHOLE[first..]), Ok(Some(200)), "after {first} bytes");
        }
    }

    #[test]
    fn what_was_not_announced_is_an_error() {
        assert!(Answer::default().feed(&[WHOLE, b"!"].concat()).is_err());
        assert!(Answer::default().feed(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(Answer::default().feed(b"nonsense\r\n\r\n").is_err());
    }
}
