//! The command line as operators meet it: what is understood, what is refused and in which words.
