//! The user of a login, and the source of the password.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The source of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// In a file, which is read at each login, because passwords are rotated.
    File(PathBuf),
    /// The password itself.
    Text(String),
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Password {
    /// The present password. A newline at the end of a file is not part of it.
    ///
    /// # Errors
    /// [`Error::Setting`] if the file cannot be read.
    pub(crate) fn read(&self) -> Result<String> {
        let path = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File(path) => path,
        };
        let password = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        Ok(password.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// A value that is not the name of a file may be the password itself. Therefore only the path of an existing file is
/// shown.
fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let message = if path.symlink_metadata().is_ok() {
        format!("the password file cannot be read ({error}): `{}`", path.display())
    } else {
        format!(
            "the password file does not exist ({error}); `password_file` (`LATTICE_RDZV_PASSWORD_FILE`, \
             `--password-file`) must be the path of a file that holds the password, and never the password itself. \
             The value is not repeated here, because it may be a secret; it has {} bytes",
            path.as_os_str().len()
        )
    };
    Error::Setting { message }
}

/// A user of the service. The password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: Password,
}

impl Credentials {
    /// A user whose password is in a file, which must already be readable.
    ///
    /// # Errors
    /// [`Error::Setting`] if the file cannot be read.
    pub fn from_file(user: impl Into<String>, path: &Path) -> Result<Self> {
        let password = Password::File(path.to_owned());
        password.read()?;
        Ok(Self { user: user.into(), password })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_read_anew_each_time_without_the_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "first\r\n").unwrap();
        let credentials = Credentials::from_file("node", &path).unwrap();
        assert_eq!(credentials.password.read().unwrap(), "first");
        std::fs::write(&path, "second").unwrap();
        assert_eq!(credentials.password.read().unwrap(), "second");
    }

    #[test]
    fn value_that_names_no_file_is_not_repeated() {
        for secret in ["hunter2", "/hunter2", "correct/horse", "a\0b"] {
            let message = Credentials::from_file("node", Path::new(secret)).unwrap_err().to_string();
            assert!(!message.contains(secret) && message.contains("`password_file`"), "{message}");
        }
        let directory = tempfile::tempdir().unwrap();
        let message = Credentials::from_file("node", directory.path()).unwrap_err().to_string();
        assert!(message.contains(&directory.path().display().to_string()), "{message}");
    }
}
