// The fingerprint of the sources that a library was built from. stadfast/ops/_library.py looks for it in the file,
// so that a library left over from older sources is never loaded.
#define SF_STRING(x) #x
#define SF_EXPAND(x) SF_STRING(x)

extern "C" __attribute__((visibility("default"), used)) const char stadfast_fingerprint[] =
    "stadfast-fingerprint:" SF_EXPAND(STADFAST_FINGERPRINT);
