// What Java's SunPKCS11 does with the module: list the KeyStore, decrypt, sign.
//
//   java ForeignJava.java LIBRARY FOLDER
//
// FOLDER holds `material`, `oaep-sha1` (wrapped for the key user-keys) and `pkcs1` (wrapped for
// old-keys) as OpenSSL made them; `java.rs256` and `java.ps256`, signatures of `material`, go there.

import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.Key;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.Provider;
import java.security.Security;
import java.security.Signature;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.PSSParameterSpec;
import java.util.Arrays;
import java.util.Collections;
import java.util.TreeSet;
import javax.crypto.Cipher;
import javax.crypto.NoSuchPaddingException;

public final class ForeignJava {
    public static void main(String[] arguments) throws Exception {
        Path folder = Path.of(arguments[1]);
        byte[] material = Files.readAllBytes(folder.resolve("material"));
        String configuration = "--name = Claviger\nlibrary = " + arguments[0] + "\n";
        Provider provider = Security.getProvider("SunPKCS11").configure(configuration);
        Security.addProvider(provider);

        KeyStore store = KeyStore.getInstance("PKCS11", provider);
        store.load(null, "any PIN".toCharArray());
        TreeSet<String> names = new TreeSet<>(Collections.list(store.aliases()));
        demand(names.toString().equals("[old-keys, user-keys]"), "the KeyStore lists " + names);
        demand(store.isKeyEntry("user-keys"), "user-keys has its private key and certificate");
        PrivateKey key = (PrivateKey) store.getKey("user-keys", null);
        demand(key.getEncoded() == null, "the private key stays where it is");

        Key old = store.getKey("old-keys", null);
        Cipher cipher = Cipher.getInstance("RSA/ECB/PKCS1Padding", provider);
        cipher.init(Cipher.DECRYPT_MODE, old);
        byte[] decrypted = cipher.doFinal(Files.readAllBytes(folder.resolve("pkcs1")));
        demand(Arrays.equals(decrypted, material), "RSA/ECB/PKCS1Padding decrypts");

        try {
            Cipher.getInstance("RSA/ECB/OAEPPadding", provider);
            System.out.println("OAEP: offered");
        } catch (NoSuchPaddingException | java.security.NoSuchAlgorithmException refused) {
            System.out.println("OAEP: SunPKCS11 has none");
        }

        sign("SHA256withRSA", null, key, material, provider, folder.resolve("java.rs256"));
        PSSParameterSpec pss =
            new PSSParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, 32, 1);
        sign("RSASSA-PSS", pss, key, material, provider, folder.resolve("java.ps256"));
        System.out.println("done");
    }

    private static void sign(String algorithm, PSSParameterSpec parameters, PrivateKey key,
            byte[] message, Provider provider, Path to) throws Exception {
        Signature signature = Signature.getInstance(algorithm, provider);
        if (parameters != null) {
            signature.setParameter(parameters);
        }
        signature.initSign(key);
        signature.update(message);
        Files.write(to, signature.sign());
    }

    private static void demand(boolean holds, String what) throws GeneralSecurityException {
        if (!holds) {
            throw new GeneralSecurityException("not so: " + what);
        }
        System.out.println(what);
    }
}
