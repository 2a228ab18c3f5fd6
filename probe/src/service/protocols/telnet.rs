//! Telnet (RFC 854): refuses every option, and reads what is shown up to the prompt. Nobody logs in.

use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;
use crate::service::text::clean;

const IAC: u8 = 255;
const SB: u8 = 250;
const SE: u8 = 240;
const WILL: u8 = 251;
const WONT: u8 = 252;
const DO: u8 = 253;
const DONT: u8 = 254;
/// Most options that are refused: who offers more is no terminal.
const OPTIONS_MAX: usize = 64;
/// Most text that is kept.
const TEXT_MAX: usize = 4096;

/// A conversation up to the first prompt.
#[derive(Default)]
pub(super) struct Telnet {
    text: Vec<u8>,
    options: Vec<(u8, u8)>,
}

impl Telnet {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Takes commands and text apart; returns what is to be answered.
    fn take(&mut self, input: &mut Vec<u8>) -> Vec<u8> {
        let mut answer = Vec::new();
        let mut rest = input.as_slice();
        loop {
            rest = match rest {
                [IAC, verb @ WILL..=DONT, option, tail @ ..] => {
                    if self.options.len() < OPTIONS_MAX && !self.options.contains(&(*verb, *option)) {
                        self.options.push((*verb, *option));
                        match *verb {
                            WILL => answer.extend_from_slice(&[IAC, DONT, *option]),
                            DO => answer.extend_from_slice(&[IAC, WONT, *option]),
                            _ => {}
                        }
                    }
                    tail
                }
                [IAC, SB, tail @ ..] => match tail.windows(2).position(|pair| pair == [IAC, SE]) {
                    Some(at) => tail.get(at + 2..).unwrap_or_default(),
                    None => break,
                },
                [IAC, WILL..=DONT] | [IAC] => break,
                [IAC, _, tail @ ..] => tail,
                [byte, tail @ ..] => {
                    if self.text.len() < TEXT_MAX {
                        self.text.push(*byte);
                    }
                    tail
                }
                [] => break,
            };
        }
        let left = rest.len();
        input.drain(..input.len() - left);
        answer
    }

    fn finding(&mut self) -> Option<Box<Finding>> {
        let shown = clean(&self.text);
        if self.options.is_empty() && shown.is_empty() {
            return None;
        }
        let mut finding = Finding::new("telnet");
        finding.look_up(keys::TELNET_BANNER, String::from_utf8_lossy(&self.text).into_owned());
        finding.fact("telnet.banner", shown);
        let named = |(verb, option): &(u8, u8)| format!("{} {option}", if *verb >= DO { "do" } else { "will" });
        finding.fact("telnet.options", self.options.iter().map(named).collect::<Vec<_>>().join(", "));
        Some(Box::new(finding))
    }

    fn is_prompt(&self) -> bool {
        let text = self.text.trim_ascii_end();
        text.last().is_some_and(|byte| matches!(byte, b':' | b'>' | b'#' | b'$'))
    }
}

impl Dialogue for Telnet {
    fn start(&mut self) -> Step {
        Step::More
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let answer = self.take(input);
        if self.is_prompt() {
            return self.finding().map_or(Step::Foreign, Step::Done);
        }
        if answer.is_empty() { Step::More } else { Step::Send(answer) }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding()
    }
}
