//! The parameters in the body of a request: a form, or a multipart form.

use crate::message::Request;
use crate::parameters::{self, Parameters, ParseError};
use crate::report::{is_form, media_type};
use futures_util::FutureExt;
use futures_util::stream;
use multer::Multipart;

/// Reads the body, if the backend would read one of this type.
///
/// # Errors
/// When the backend would refuse it.
pub(crate) fn read_form(request: &Request<'_>) -> Result<Parameters, ParseError> {
    let media_type = request.content_type.and_then(media_type);
    match media_type.as_deref() {
        Some("multipart/form-data") => read_multipart(request),
        Some(media_type) if is_form(media_type) => parameters::parse(request.body),
        None if request.method == "POST" => parameters::parse(request.body),
        _ => Ok(Parameters::new()),
    }
}

/// All of the body is there, so nothing is waited for. A body that is no
/// multipart form has no parameters, or those before its first fault.
fn read_multipart(request: &Request<'_>) -> Result<Parameters, ParseError> {
    let mut parameters = Parameters::new();
    let content_type = request.content_type.unwrap_or_default();
    let Ok(boundary) = multer::parse_boundary(content_type) else {
        return Ok(parameters);
    };
    let body = stream::iter([Ok::<_, std::io::Error>(request.body.to_vec())]);
    let mut multipart = Multipart::new(body, boundary);
    let fields = async {
        let mut fields = Vec::new();
        while let Ok(Some(field)) = multipart.next_field().await {
            let name = field.name().unwrap_or_default().as_bytes().to_vec();
            match field.bytes().await {
                Ok(value) => fields.push((name, value.to_vec())),
                Err(_) => break,
            }
        }
        fields
    };
    for (name, value) in fields.now_or_never().unwrap_or_default() {
        parameters::add(&mut parameters, &name, value)?;
    }
    Ok(parameters)
}
